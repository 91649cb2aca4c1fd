"""Reduced precision: smaller tables in the same graph, with the error that this makes, measured.

Composes with low rank and with packing: reduce last, for then there are few tables and each is read by one lookup.
The other half, an int8 MLP, belongs to the exported file: :mod:`afm_fx.quantized_onnx`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.batches import checked_batches, inputs_of
from afm_fx.change import Change
from afm_fx.errors import BatchError, UserError
from afm_fx.inputs import Inputs
from afm_fx.logits import expose_logits
from afm_fx.program import Program
from passes.graph_tools import clone_graph_module
from passes.reduce_tables import SMALLEST_BYTES, ReduceTables, TableFormat
from passes.unpool_bags import UnpoolBags


@dataclass(frozen=True)
class OutputError:
    """How far the outputs of one model are from another's, over all rows and floating outputs of some batches.

    Attributes:
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
    """What fewer bits did to a program's tables, or to the Linears of a file.

    Attributes:
        bytes_before: of all weights.
        bytes_after: of all weights.
        reduced: (table or Linear, format) of those in fewer bits.
        kept: (table or Linear, reason) of those that stay as they are.
        error: of the outputs, against what was given; None where there was nothing to measure it on.
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
        batches: rows on which the outputs are compared with those of the program given; for a program with typed inputs
            also rows of the original's.
        smallest_bytes: tables of fewer bytes stay as they are.

    Raises:
        UserError: an unknown format, no batches, or no output of floating numbers.
        BatchError: a batch does not fit the program.
        CalibrationError: ``batches`` is one batch, not an iterable of batches.
    """
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
    (before, before_logits), (after, after_logits) = map(expose_logits, (reference, program))
    logits = before_logits and after_logits
    if not logits:
        before, after = reference, program

    def outputs() -> Iterable[tuple[list[Tensor], list[Tensor]]]:
        for batch in checked_batches(reference, _typed(reference, batches)):
            inputs = inputs_of(reference, batch.leaves)
            one, other = (pytree.tree_leaves(each.run(inputs)) for each in (after, before))
            yield one, other

    return difference(outputs(), logits=logits)


def difference(pairs: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]], *, logits: bool = False) -> OutputError:
    """The error over batches of outputs, each with what is right. Integer outputs do not count."""
    rows, squares, count, largest = 0, 0.0, 0, 0.0
    for outputs, right in pairs:
        floating = [pair for pair in zip(outputs, right, strict=True) if pair[1].is_floating_point()]
        for output, reference in floating:
            distance = (output.double() - reference.double()).abs()
            largest = max(largest, float(distance.max()))
            squares += float(distance.square().sum())
            count += distance.numel()
        rows += max((reference.shape[0] if reference.dim() else 1 for _, reference in floating), default=0)
    if not count:
        raise UserError("the outputs cannot be compared: there are no batches, or no output of floating numbers")
    return OutputError(rows, largest, math.sqrt(squares / count), logits)


def _typed(program: Program, batches: Iterable[Inputs]) -> Iterable[Inputs]:
    """The batches as the program takes them: a program with typed inputs may be given the original's."""
    if program.original_inputs is None or isinstance(batches, Tensor | dict | str):
        return batches  # what is no iterable of batches is refused where batches are checked
    return (_typed_batch(program, batch) for batch in batches)


def _typed_batch(program: Program, batch: Inputs) -> Inputs:
    try:
        program.bind(batch)
    except BatchError:
        return program.convert_inputs(batch)
    return batch
