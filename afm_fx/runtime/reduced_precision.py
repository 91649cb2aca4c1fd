"""Reduced precision: smaller tables in the same graph, with the error that this makes, measured.

Composes with low rank and with packing: reduce last, for then there are few tables and each is read by one lookup.
Int8 Linears belong to the exported file: ONNX Runtime's ``quantize_dynamic`` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.data import checked_batches
from afm_fx.errors import UserError
from afm_fx.program import Change, Inputs, Program, expose_logits, inputs_of, require_program
from passes.graph import clone_graph_module
from passes.serving import SMALLEST_BYTES, ReduceTables, TableFormat, UnpoolBags


@dataclass(frozen=True)
class OutputError:
    """How far the outputs of one program are from another's, over all floating outputs before their final sigmoid."""

    rows: int
    largest: float
    rmse: float

    def line(self) -> str:
        """The error in words."""
        return f"logit error over {self.rows:,} rows: rmse {self.rmse:.1e}, largest {self.largest:.1e}"


@dataclass(frozen=True)
class PrecisionReport:
    """What fewer bits did to a program's tables; bytes are those of all weights.

    Attributes:
        reduced: (table, format) of those in fewer bits.
        kept: (table, reason) of those that stay as they are.
        error: of the outputs, None where there were no batches to measure it on.
    """

    bytes_before: int
    bytes_after: int
    reduced: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    error: OutputError | None

    def table(self) -> str:
        """The report as text."""
        lines = [f"'{name}' in {stored}" for name, stored in self.reduced]
        lines += [f"'{name}' stays as it is: {reason}" for name, reason in self.kept]
        lines.append(f"bytes: {self.bytes_before:,} -> {self.bytes_after:,}")
        if self.error is not None:
            lines.append(self.error.line())
        return "\n".join(lines)


def reduce_precision(
    program: Program,
    tables: str | TableFormat,
    batches: Iterable[Inputs] | None = None,
    *,
    smallest_bytes: int = SMALLEST_BYTES,
) -> Change[PrecisionReport]:
    """Stores the tables of a program in fewer bits; rows are converted back right after they were looked up.

    Inputs, outputs and everything between stay in the number format they have. The program given is left as it is.

    Args:
        program: dense or low-rank, packed or not. Pack first: a packed program has few lookups, and each conversion
            costs one operator (float16) or three (int8) a lookup.
        tables: "float16", or "int8" with one scale per row; tables so narrow that float16 is no larger are stored in
            that.
        batches: rows on which the outputs are compared with those of the program given; the original's inputs, also for
            a program with typed ones.
        smallest_bytes: tables of fewer bytes stay as they are.

    Raises:
        UserError: an unknown format, no batches, or no output of floating numbers.
        BatchError: a batch does not fit the program.
        CalibrationError: ``batches`` is one batch, not an iterable of batches.
    """
    require_program(program, "afm_fx.reduce_precision")
    if tables not in list(TableFormat):
        raise UserError(f"tables is one of {', '.join(TableFormat)}, got {tables!r}")
    module = clone_graph_module(program.graph_module)
    UnpoolBags()(module)
    reduction = ReduceTables(TableFormat(tables), smallest_bytes=smallest_bytes)
    reduction(module)
    reduced = tuple((name, stored.value) for name, stored in reduction.reduced)
    recipe = program.recipe.then("tables", format=str(tables), reduced=len(reduced)) if reduced else program.recipe
    result = replace(program.with_graph(module), recipe=recipe)
    error = None if batches is None else output_error(result, program, batches)
    report = PrecisionReport(program.state_bytes(), result.state_bytes(), reduced, reduction.kept, error)
    return Change(result, report)


def output_error(program: Program, reference: Program, batches: Iterable[Inputs]) -> OutputError:
    """Compares the outputs of two programs of the same inputs, before a final sigmoid where there is one."""
    if reference.original_inputs is not None and not isinstance(batches, Tensor | dict | str):
        batches = map(reference.convert_inputs, batches)  # one batch alone is refused where batches are checked
    exact, near = (expose_logits(each)[0] for each in (reference, program))
    rows, distances = 0, []
    for batch in checked_batches(reference, batches):
        inputs = inputs_of(reference, batch.leaves)
        outputs = (pytree.tree_leaves(each.run(inputs)) for each in (exact, near))
        rows += batch.rows
        for right, output in zip(*outputs, strict=True):
            if right.is_floating_point():
                distances.append((output.double() - right.double()).abs().flatten())
    if not distances:
        raise UserError("the outputs cannot be compared: there are no batches, or no output of floating numbers")
    distance = torch.cat(distances)
    return OutputError(rows, float(distance.max()), float(distance.square().mean().sqrt()))
