"""Says what is wrong with a batch that made a program fail: which input, which id, which node.

Slow and thorough: it runs node by node, and only after something failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from afm_fx.batches import Batch, flat_inputs
from afm_fx.errors import AfmFxError, BatchError, CalibrationError
from afm_fx.program import Program
from passes.graph_tools import aten, shape_of
from passes.lookups import BAGS, ids_of
from passes.sink_codes import source_line
from passes.sites import site_name


class _FoundError(Exception):
    """Carries a finding out of the interpreter."""

    def __init__(self, error: AfmFxError) -> None:
        super().__init__(str(error))
        self.error = error


class _Watch(Interpreter):
    """Runs a program node by node and stops at the first id outside its table or the first non-finite value."""

    def __init__(self, program: Program, batch: Batch, *, check_finite: bool) -> None:
        super().__init__(program.graph_module)
        self._batch = batch
        self._check_finite = check_finite

    def run_node(self, n: Node) -> Any:
        ids = ids_of(n) if n.op == "call_function" else None
        table = n.args[0] if n.args else None
        is_table = isinstance(table, Node) and (table.op == "get_attr" or n.target is not aten.index.Tensor)
        if ids is not None and isinstance(table, Node) and is_table:
            self._check_ids(n, table, ids)
        result = super().run_node(n)
        if self._check_finite and isinstance(result, Tensor) and result.is_floating_point():
            bad = ~result.isfinite()
            if bad.any():
                raise _FoundError(CalibrationError(self._non_finite(n, result, bad)))
        return result

    def _check_ids(self, node: Node, table: Node, source: Node) -> None:
        ids, rows = self.env[source], self.env[table].shape[0]
        lowest = -rows if node.target is aten.index.Tensor else 0
        if ids.dtype == torch.bool:
            return
        outside = (ids < lowest) | (ids >= rows)
        if not outside.any():
            return
        position = outside.nonzero()[0].tolist()
        row = position[0] // _ids_per_row(source) if position and node.target in BAGS else next(iter(position), 0)
        raise _FoundError(
            BatchError(
                f"{self._batch.name}, row {row}: id {int(ids[tuple(position)])} of {_field(node, source)} "
                f"is outside table '{_table_name(table)}' with {rows:,} rows "
                f"(ids {lowest:,} to {rows - 1:,})"
            )
        )

    def _non_finite(self, node: Node, result: Tensor, bad: Tensor) -> str:
        position = bad.nonzero()[0].tolist()
        value = float(result[tuple(position)])
        what = f"input '{node.name}'" if node.op == "placeholder" else f"node '{node.name}' ({node.target})"
        place = source_line(node)
        return (
            f"{self._batch.name}: {what} has the value {value} at position {position}"
            f"{', at ' + place if place else ''}; calibration needs finite features"
        )


def _table_name(table: Node) -> str:
    """The table's name, that of the table behind renormalized rows too."""
    source = table.args[0] if table.target is aten.embedding_renorm.default else table
    return site_name(str(source.target)) if isinstance(source, Node) and source.op == "get_attr" else table.name


def _ids_per_row(flat: Node) -> int:
    """How many of a bag's ids belong to one row of the input that they were flattened from."""
    source = flat.args[0] if flat.target is aten.reshape.default else None
    shape = shape_of(source) if isinstance(source, Node) else None
    inner = [size for size in (shape or ())[1:] if isinstance(size, int)]
    return max(math.prod(inner), 1)


def _field(node: Node, ids: Node) -> str:
    """The input that an id came from: its name, with the column where it was sliced from a matrix."""
    column = ""
    current: Any = ids
    while isinstance(current, Node) and current.op != "placeholder":
        if current.target is aten.slice.Tensor and len(current.args) > 2 and current.args[1] != 0 and not column:
            column = f", column {current.args[2]}"
        if current.target is aten.select.int and current.args[1] != 0 and not column:
            column = f", column {current.args[2]}"
        current = current.all_input_nodes[0] if current.all_input_nodes else None
    return f"input '{current.name}'{column}" if isinstance(current, Node) else f"node '{node.name}'"


def explain_failed_batch(program: Program, batch: Batch, error: Exception) -> AfmFxError:
    """The typed error for a batch on which the program raised."""
    found = _watch(program, batch, check_finite=False)
    if found is not None:
        return found
    reason = str(error).strip().splitlines()
    return BatchError(f"{batch.name}: the model fails on it: {reason[0] if reason else type(error).__name__}")


def explain_failed_inputs(
    program: Program, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> AfmFxError | None:
    """The typed error for one batch of inputs on which the program raised, None where the inputs are not to blame."""
    batch = Batch(0, 0, args, kwargs)
    if isinstance(error, IndexError):
        return explain_failed_batch(program, batch, error)
    return _watch(program, batch, check_finite=False)


def explain_non_finite(program: Program, suspects: Sequence[tuple[Batch, Tensor]]) -> AfmFxError:
    """The typed error for batches whose features at some site are not all finite (or overflow)."""
    for batch, rows in suspects:
        if not rows.isfinite().all():
            found = _watch(program, batch, check_finite=True)
            return found or CalibrationError(f"{batch.name} has NaN or infinite features")
    first, last = suspects[0][0].name, suspects[-1][0].name
    return CalibrationError(f"{first} to {last}: features are too large to square in float32")


def _watch(program: Program, batch: Batch, *, check_finite: bool) -> AfmFxError | None:
    watch = _Watch(program, batch, check_finite=check_finite)
    try:
        with torch.no_grad():
            watch.run(*flat_inputs(program, batch), enable_io_processing=False)
    except _FoundError as found:
        return found.error
    except (IndexError, RuntimeError):
        return None
    return None
