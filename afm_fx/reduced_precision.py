"""Reduced precision: smaller tables in the same graph, with the error that this makes, measured.

Composes with low rank and with packing: reduce last, for then there are few tables and each is read by one lookup.
The other half, an int8 MLP, belongs to the exported file: :mod:`afm_fx.quantized_onnx`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.batches import checked_batches
from afm_fx.errors import BatchError, UserError
from afm_fx.inputs import Inputs
from afm_fx.logits import expose_logits
from afm_fx.program import Program
from afm_fx.tables import render_table
from passes.graph_tools import clone_graph_module
from passes.reduce_tables import SMALLEST_BYTES, ReducedTable, ReduceTables, TableFormat
from passes.unpool_bags import UnpoolBags


@dataclass(frozen=True)
class OutputError:
    """How far the outputs of one program are from another's, over all rows and outputs of some batches.

    Attributes:
        rows: rows compared.
        largest: largest absolute difference.
        rmse: root mean square difference.
        logits: whether outputs were compared before their final sigmoid, where they have one.
    """

    rows: int
    largest: float
    rmse: float
    logits: bool

    def line(self) -> str:
        """The error in words."""
        what = "logit" if self.logits else "output"
        return f"{what} error over {self.rows:,} rows: rmse {self.rmse:.1e}, largest {self.largest:.1e}"


@dataclass(frozen=True)
class PrecisionReport:
    """What reducing the precision did.

    Attributes:
        bytes_before: bytes of the state of the program given.
        bytes_after: bytes of the state of the reduced one.
        tables: the tables stored in fewer bits.
        kept: (table, reason) of the tables that are looked up and stay as they are.
        error: of the outputs, against the program given; None where no batches were given.
    """

    bytes_before: int
    bytes_after: int
    tables: tuple[ReducedTable, ...]
    kept: tuple[tuple[str, str], ...]
    error: OutputError | None

    def table(self) -> str:
        """The report as text."""
        rows = [
            (
                each.name,
                f"{each.rows:,}x{each.width}",
                f"{each.stored.value}{' (column scales)' if each.column_scales else ''}",
                f"{each.bytes_before:,}",
                f"{each.bytes_after:,}",
                f"{each.rms_row:.2e}",
                f"{each.rms_row_error:.1e}",
                f"{each.largest_row_error:.1e}",
            )
            for each in self.tables
        ]
        columns = ("table", "shape", "stored as", "bytes before", "after", "rms row", "rms error", "largest error")
        lines = [render_table("", columns, rows, left=1, text=("stored as",))] if rows else []
        lines += [f"'{name}' stays as it is: {reason}" for name, reason in self.kept]
        lines.append(f"bytes of the program: {self.bytes_before:,} -> {self.bytes_after:,}")
        if self.error is not None:
            lines.append(self.error.line())
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)


@dataclass(frozen=True)
class Reduced:
    """A program of reduced precision and what was done."""

    program: Program
    report: PrecisionReport


def reduce_precision(
    program: Program,
    tables: str | TableFormat | None,
    batches: Iterable[Inputs] | None = None,
    *,
    smallest_bytes: int = SMALLEST_BYTES,
) -> Reduced:
    """Stores the tables of a program in fewer bits; rows are converted back right after they were looked up.

    Inputs, outputs and everything between stay in the number format they have. The program given is left as it is.

    Args:
        program: dense or low-rank, packed or not. Pack first: a packed program has few lookups, and each conversion
            costs one operator (float16) or three (int8) a lookup.
        tables: "float16", "int8" (one scale per row; tables so narrow that float16 is no larger are stored in float16)
            or None for as they are.
        batches: rows on which the outputs are compared with those of the program given; for a program with typed inputs
            also rows of the original's.
        smallest_bytes: tables of fewer bytes stay as they are.

    Raises:
        UserError: an unknown format.
        BatchError: a batch does not fit the program.
        CalibrationError: ``batches`` is one batch, not an iterable of batches.
    """
    formats = [each.value for each in TableFormat]
    if tables is not None and tables not in formats:
        raise UserError(f"tables is one of {', '.join(formats)} or None, got {tables!r}")
    module = clone_graph_module(program.graph_module)
    reduced: tuple[ReducedTable, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    if tables is not None:
        UnpoolBags()(module)
        reduction = ReduceTables(TableFormat(tables), smallest_bytes=smallest_bytes)
        reduction(module)
        reduced, kept = reduction.reduced, reduction.kept
    recipe = program.recipe.then("tables", format=str(tables), reduced=len(reduced)) if reduced else program.recipe
    result = replace(program.with_graph(module), recipe=recipe)
    error = None if batches is None else output_error(result, program, batches)
    return Reduced(result, PrecisionReport(program.state_bytes(), result.state_bytes(), reduced, kept, error))


def output_error(program: Program, reference: Program, batches: Iterable[Inputs]) -> OutputError:
    """Compares the outputs of two programs, before a final sigmoid where there is one.

    Args:
        program: of the same inputs and outputs as the reference.
        reference: what is right.
        batches: what both are run on.

    Raises:
        BatchError: a batch does not fit the programs.
        UserError: there are no batches, or the outputs hold no floating numbers.
    """
    (before, before_logits), (after, after_logits) = map(expose_logits, (reference, program))
    logits = before_logits and after_logits
    if not logits:
        before, after = reference, program
    rows, squares, count, largest = 0, 0.0, 0, 0.0
    for batch in checked_batches(reference, _taken(reference, batches)):
        with torch.no_grad():
            wanted, found = (_floats(each(*batch.args, **batch.kwargs)) for each in (before, after))
        rows += batch.rows
        for one, other in zip(found, wanted, strict=True):
            difference = (one.double() - other.double()).abs()
            largest = max(largest, float(difference.max()))
            squares += float(difference.square().sum())
            count += difference.numel()
    if not count:
        raise UserError("the outputs cannot be compared: there are no batches, or no output of floating numbers")
    return OutputError(rows, largest, math.sqrt(squares / count), logits)


def _taken(program: Program, batches: Iterable[Inputs]) -> Iterable[Inputs]:
    """The batches as the program takes them: a program with typed inputs may be given the original's."""
    if program.original_inputs is None or isinstance(batches, Tensor | Mapping | str):
        return batches
    return (_typed(program, batch) for batch in batches)


def _typed(program: Program, batch: Inputs) -> Inputs:
    try:
        program.bind(batch)
    except BatchError:
        return program.convert_inputs(batch)
    return batch


def _floats(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
