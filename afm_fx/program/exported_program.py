"""Programs as ``torch.export`` knows them, for every compiler that starts from an ``ExportedProgram``."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from afm_fx.errors import ExportError, short_reason
from afm_fx.io import quiet
from afm_fx.program.program import Program, require_program
from passes.canonical import PointwiseConvolutions
from passes.graph import clone_graph_module
from passes.serving import UnpoolBags, assert_ids


def to_exported_program(program: Program) -> ExportedProgram:
    """The program as an ``ExportedProgram``: its inputs, its free batch size, its parameters (shared, not copied).

    AOTInductor, ExecuTorch, torch-tensorrt and OpenVINO take it from there, and :func:`afm_fx.capture` takes it back.
    It checks shapes, not ids: :meth:`Program.run` does.

    Raises:
        ExportError: torch cannot export the graph.
    """
    require_program(program, "afm_fx.to_exported_program")
    try:
        with quiet():
            return exported(program, unpool_bags=False)
    except Exception as error:  # torch.export raises many unrelated types
        raise ExportError(f"torch cannot export this program: {short_reason(error)}") from error


def exported(program: Program, *, unpool_bags: bool, check_ids: bool = False) -> ExportedProgram:
    """What ``torch.export`` makes of a program.

    Args:
        unpool_bags: make gathers and sums of embedding bags, which most runtimes would loop over.
        check_ids: assert that ids are inside their tables (:mod:`passes.serving.assert_ids`).

    Raises:
        Exception: whatever torch raises; the caller knows what the export was for.
    """
    module = clone_graph_module(program.graph_module)
    PointwiseConvolutions()(module)
    if unpool_bags:
        UnpoolBags()(module)
    if check_ids:
        assert_ids(module, program.id_bounds)
    args, kwargs = program.cast_inputs((program.example_args, program.example_kwargs))
    return torch.export.export(module, args, kwargs or None, dynamic_shapes=program.dynamic_shapes())
