"""Proves that an ONNX file is valid and computes what the program computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import ExportError, FileFormatError, MissingPackageError, short_reason
from afm_fx.program import Program, random_inputs
from afm_fx.runtime.artifact import read_artifact
from afm_fx.runtime.onnx_runtime import open_session
from passes.graph import is_random
from passes.laws import source_line

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Largest accepted difference between ONNX Runtime and torch, relative to max(1, |output|), per output dtype."""

PARITY_ROWS = (2, 7, 64)


def check_file(path: Path) -> None:
    """Runs ``onnx.checker`` with shape inference on a file, external weights included.

    Raises:
        ExportError: the checker refuses the file.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # checker and shape inference raise types of their own
        raise ExportError(f"onnx.checker refuses the exported file: {short_reason(error)}") from error


def parity_rows(program: Program) -> tuple[int, ...]:
    """The batch sizes at which agreement is checked."""
    if program.dynamic_batch:
        return PARITY_ROWS
    return (program.example_rows or 1,)


def check_parity(
    program: Program,
    path: Path,
    *,
    tolerance: float | None = None,
    rows: Sequence[int] | None = None,
) -> float:
    """Compares ONNX Runtime with torch on fresh random inputs at several batch sizes.

    Args:
        tolerance: largest accepted difference relative to max(1, |output|); by default that of ``TOLERANCES``.
        rows: the batch sizes; by default those of :func:`parity_rows`.

    Returns:
        The largest absolute difference.

    Raises:
        ExportError: ONNX Runtime is missing or refuses the file, or an output differs beyond the tolerance.
    """
    session = _session(path)
    names = [value.name for value in session.get_inputs()]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
        try:
            return [torch.as_tensor(output) for output in session.run(None, feed)]
        except Exception as error:  # ONNX Runtime's errors derive from nothing common
            raise ExportError(f"ONNX Runtime fails on the file: {short_reason(error)}") from error

    outputs = [value.name for value in session.get_outputs()]
    return compare_with_torch(program, run, outputs, tolerance=tolerance, rows=rows)


def compare_with_torch(
    program: Program,
    run: Callable[[list[Tensor]], list[Tensor]],
    outputs: Sequence[str] | None = None,
    *,
    tolerance: float | None = None,
    rows: Sequence[int] | None = None,
) -> float:
    """:func:`check_parity` of anything that takes the program's input tensors and gives its output tensors.

    Raises:
        ExportError: an output differs beyond the tolerance.
    """
    source = random_inputs(program)
    largest = 0.0
    for count in rows or parity_rows(program):
        args, kwargs = source.draw(count, seed=count)
        with torch.no_grad():
            expected = [leaf for leaf in pytree.tree_leaves(program(*args, **kwargs)) if isinstance(leaf, Tensor)]
            actual = run([leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        names = outputs or range(len(expected))
        for name, output, wanted in zip(names, actual, expected, strict=True):
            where = f"'{name}' at batch {count}"
            try:
                largest = max(largest, _output_difference(output.cpu(), wanted.cpu(), where, tolerance))
            except ExportError as error:
                if (drawn := _random_draw(program)) is None:
                    raise
                raise ExportError(
                    f"the model draws random numbers while it serves ({drawn}), so no two runs of it agree: {error}. "
                    "Make that part deterministic in eval mode, or export with check=False"
                ) from error
    return largest


def _random_draw(program: Program) -> str | None:
    """The operator that draws random numbers, with the user's line; None where there is none."""
    node = next(filter(is_random, program.graph_module.graph.nodes), None)
    if node is None:
        return None
    place = source_line(node)
    return f"{node.target}, at {place}" if place else str(node.target)


def _session(path: Path) -> Any:
    try:
        return open_session(read_artifact(path))
    except MissingPackageError as error:
        raise ExportError(f"the check needs ONNX Runtime, or export with check=False: {error}") from error
    except FileFormatError as error:
        raise ExportError(f"ONNX Runtime refuses the exported file: {error}") from error


def _output_difference(output: Tensor, wanted: Tensor, where: str, tolerance: float | None) -> float:
    """The largest absolute difference of an output of an exported file from torch's.

    Raises:
        ExportError: shape or dtype differ, nothing is finite, or the difference is beyond the tolerance.
    """
    if output.shape != wanted.shape or output.dtype != wanted.dtype:
        raise ExportError(
            f"output {where} is {output.dtype} {list(output.shape)} in the file, "
            f"{wanted.dtype} {list(wanted.shape)} in torch"
        )
    accepted = TOLERANCES.get(wanted.dtype, 0.0) if tolerance is None else tolerance
    output, wanted = output.double(), wanted.double()
    if not bool(wanted.isfinite().any()):
        raise ExportError(
            f"output {where} is nowhere finite on random inputs, so agreement cannot be checked; look for the cause, "
            "or export with check=False"
        )
    # Equal infinities and NaN in the same places agree.
    same = (output == wanted) | (output.isnan() & wanted.isnan())
    difference = torch.where(same, 0.0, (output - wanted).abs())
    relative = torch.where(same, 0.0, difference / wanted.abs().clamp(min=1))
    worst = float(relative.nan_to_num(nan=float("inf")).max())
    if worst > accepted:
        raise ExportError(
            f"output {where} differs from torch by {worst:.2e} relative to max(1, |output|), "
            f"more than the accepted {accepted:.0e}"
        )
    return float(difference.max())
