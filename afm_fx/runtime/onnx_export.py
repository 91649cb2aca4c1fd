"""Exports a program as an ONNX file that any runtime reads, and proves that the file computes the same.

The file is written into a directory of its own beside the target, checked there, and moved into place last, so that a
failure leaves nothing behind and an older file untouched.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import ExportError, UserError, short_reason
from afm_fx.io import operator_counts, quiet, refuse_existing_file, render_table, staged_outputs
from afm_fx.program import METADATA_KEY, Program, dict_key, exported, random_inputs, require_program, unique_name
from afm_fx.runtime.artifact import DIGITS, existing_external_data, external_data_path
from afm_fx.runtime.onnx_check import refuse_findings
from afm_fx.runtime.onnx_parity import check_file, check_parity, parity_rows
from afm_fx.runtime.onnx_signature import input_values, program_recipe, sign
from passes.graph import runs_subgraphs

EXTERNAL_DATA_BYTES = 1_500_000_000
"""Weights beyond this go into a second file: one protobuf message holds less than 2 GB, graph included."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how closely it agrees.

    Attributes:
        data_path: the file of external weights beside it, None where the weights are inside.
        opset: version of the standard operator set.
        bytes: size of the file, external weights included.
        operators: (operator, count) pairs, the most frequent first.
        max_abs_difference: largest absolute difference between ONNX Runtime and torch on fresh random inputs, None
            where the check was left out.
        checked_rows: batch sizes of that check.
        seconds: wall-clock time of the whole export, checks included.
    """

    path: Path
    data_path: Path | None
    opset: int
    bytes: int
    parameters: int
    operators: tuple[tuple[str, int], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_abs_difference: float | None
    checked_rows: tuple[int, ...]
    seconds: float

    @property
    def node_count(self) -> int:
        """Number of operators in the file."""
        return sum(count for _, count in self.operators)

    def table(self) -> str:
        """The report as text."""
        rows = [
            ("opset", self.opset),
            ("inputs", ", ".join(self.inputs)),
            ("outputs", ", ".join(self.outputs)),
            ("parameters", f"{self.parameters:,}"),
            ("bytes", f"{self.bytes:,}"),
            ("external weights", self.data_path.name if self.data_path else "none"),
            ("operators", f"{self.node_count}: " + ", ".join(f"{name} {count}" for name, count in self.operators)),
            ("largest difference to torch", self._parity()),
            ("seconds", f"{self.seconds:.1f}"),
        ]
        return render_table(f"Exported {self.path}", ("property", "value"), rows, left=2)

    def line(self) -> str:
        """The report on one line."""
        size = f"{self.bytes:,} bytes with its weights"
        return f"{self.path.name}: {self.node_count} operators, {size}, largest difference to torch {self._parity()}"

    def _parity(self) -> str:
        if self.max_abs_difference is None:
            return "not checked"
        return f"{self.max_abs_difference:.2e} (batch {', '.join(map(str, self.checked_rows))})"


def export_onnx(
    program: Program,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    check: bool = True,
    force: bool = False,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    tolerance: float | None = None,
) -> ExportReport:
    """Writes a program as an ONNX file with standard operators only.

    Inputs are named as in the program; those of a dict, as its keys. Parameters keep their qualified names. A program
    with typed inputs notes in the file's metadata where their columns come from (:mod:`afm_fx.program.input_mapping`).

    Args:
        path: the ONNX file. Missing directories are created. External weights go to ``<path>.data``.
        batch_size: the one batch size that the file takes, every shape in it fixed; None for a free batch size.
        check: run ``onnx.checker`` on the file and compare ONNX Runtime with torch on fresh random inputs.
        external_data_bytes: weights beyond this many bytes go to the second file.
        tolerance: largest accepted difference relative to ``max(1, |output|)``; by default that of the output's dtype.

    Raises:
        OutputExistsError: the path exists and ``force`` is not set.
        UserError: nothing can be written there, or the program does not take that batch size.
        ExportError: torch cannot express the program in ONNX, an operator is not a standard one, ONNX Runtime is
            missing or refuses the file, or its outputs differ from torch's by more than the tolerance.
    """
    require_program(program, "afm_fx.export_onnx")
    target = Path(path)
    before = existing_external_data(target)
    for each in (target, *before):
        refuse_existing_file(each, force=force)
    limit = min(external_data_bytes, EXTERNAL_DATA_BYTES)
    data: list[str] = []

    def save(model: ir.Model, staged: Path) -> None:
        if _weight_bytes(model) > limit:
            # The weights that the old file refers to stay under their name until the new one is in its place.
            data.append(external_data_path(target, _digest(model) if before else "").name)
        ir.save(model, staged, external_data=data[0] if data else None)

    names = [target.name, *(each.name for each in before)]
    with staged_outputs(target.parent, names, last=target.name) as directory:
        staged = directory / target.name
        report = staged_export(program, staged, save, batch_size=batch_size, check=check, tolerance=tolerance)
        size = sum(file.stat().st_size for file in directory.iterdir())
    return replace(report, path=target, data_path=target.with_name(data[0]) if data else None, bytes=size)


def staged_export(
    program: Program,
    path: Path,
    save: Callable[[ir.Model, Path], None],
    *,
    batch_size: int | None,
    check: bool,
    tolerance: float | None,
) -> ExportReport:
    """Translates a program, saves it and checks the file where it is; see :func:`export_onnx`.

    Args:
        path: the ONNX file, in a directory that is moved into place later.
        batch_size, check, tolerance: see :func:`export_onnx`.

    Returns:
        A report whose ``bytes`` are those of the file alone, without weights beside it.
    """
    started = time.perf_counter()
    model = _translate(program if batch_size is None else with_batch_size(program, batch_size))
    try:
        save(model, path)
    except OSError as error:
        raise ExportError(f"cannot write the ONNX file: {error}") from error
    rows = parity_rows(program) if batch_size is None else (batch_size,)
    difference = None
    written = refuse_findings(path, control_flow=any(map(runs_subgraphs, program.graph_module.graph.nodes)))
    if check:
        check_file(path)
        difference = check_parity(program, path, tolerance=tolerance, rows=rows)
    return ExportReport(
        path=path,
        data_path=None,
        opset=model.opset_imports[""],
        bytes=path.stat().st_size,
        parameters=program.parameter_count(),
        operators=operator_counts(written),
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        max_abs_difference=difference,
        checked_rows=rows if check else (),
        seconds=time.perf_counter() - started,
    )


def place_outside(model: ir.Model, place: Callable[[str, ir.TensorProtocol], ir.ExternalTensor | None]) -> None:
    """Exchanges every initializer for the place in another file that ``place`` gives it, None to leave it inside."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                value.const_value = place(str(name), value.const_value) or value.const_value


def with_batch_size(program: Program, rows: int) -> Program:
    """The program with example inputs of so many rows and no other batch size.

    Raises:
        UserError: it takes another batch size only.
    """
    if rows < 1:
        raise UserError(f"a batch size is at least 1, got {rows}")
    if not program.dynamic_batch:
        fixed = parity_rows(program)
        if fixed != (rows,):
            raise UserError(f"the program was captured with a fixed batch of {fixed[0]}, it cannot take {rows} rows")
        return program
    args, kwargs = random_inputs(program).draw(rows)
    return replace(program, example_args=args, example_kwargs=kwargs, dynamic_batch=False)


def _translate(program: Program) -> ir.Model:
    inputs = input_values(program)
    names = [value.name for value in inputs]
    outputs = _output_names(program, names)
    try:
        with quiet():
            # The exporter would loop over bags, and in float32 whatever the table's format.
            graph = exported(program, unpool_bags=True)
            onnx_program = torch.onnx.export(graph, dynamo=True, input_names=names, output_names=outputs, verbose=False)
    except Exception as error:  # the exporter raises many unrelated types
        raise ExportError(f"torch cannot express this program in ONNX: {short_reason(error)}") from error
    if onnx_program is None:
        raise ExportError("torch.onnx.export returned nothing")
    model: ir.Model = onnx_program.model
    _name_batch_axis(model, {value.name for value in inputs if value.batched})
    _drop_bookkeeping(model)
    sign(model, program_recipe(program, outputs))
    if (mapping := program.file_mapping()) is not None:
        model.metadata_props[METADATA_KEY] = mapping.to_json()
    return model


def _output_names(program: Program, inputs: list[str]) -> list[str]:
    args, kwargs = program.cast_inputs((program.example_args, program.example_kwargs))
    with torch.no_grad():
        result = program.graph_module(*args, **kwargs)
    names, leaves = list(inputs), pytree.tree_leaves_with_path(result)
    for position, (key_path, leaf) in enumerate(leaves):
        if isinstance(leaf, Tensor):
            plain = "output" if len(leaves) == 1 else f"output_{position}"
            names.append(unique_name(dict_key(key_path) or plain, names))
    return names[len(inputs) :]


def _name_batch_axis(model: ir.Model, batched: set[str]) -> None:
    """Calls the batch axis "batch" wherever its exporter-given symbol stands."""
    first_axes = [value.shape[0] for value in model.graph.inputs if value.name in batched and value.shape is not None]
    symbols = {str(axis.value) for axis in first_axes if isinstance(axis, ir.SymbolicDim)}
    if not symbols:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(symbols)))})\b")
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [output for node in model.graph.all_nodes() for output in node.outputs]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    ir.SymbolicDim(pattern.sub("batch", str(size.value))) if isinstance(size, ir.SymbolicDim) else size
                    for size in value.shape
                ]
            )


def _drop_bookkeeping(model: ir.Model) -> None:
    """Removes the exporter's notes: they hold source lines and file names of whoever exported."""
    graph = model.graph
    values: list[Any] = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values += [node, *node.outputs]
    for each in (model, graph, *values):
        each.metadata_props.clear()
        each.doc_string = None


def _digest(model: ir.Model) -> str:
    """What tells a model's weights from others."""
    digest = hashlib.sha256()
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            digest.update(f"{name} {value.const_value.dtype} {value.const_value.shape}".encode())
            digest.update(np.ascontiguousarray(value.const_value.numpy()).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:DIGITS]


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
