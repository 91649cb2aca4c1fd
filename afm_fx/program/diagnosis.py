"""Says what is wrong with a batch that made a program fail: which input, which id, which node.

Slow and thorough: it runs node by node, and only after something failed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from afm_fx.errors import AfmFxError, BatchError, CalibrationError, id_outside
from afm_fx.program.batch import Batch
from afm_fx.program.watched_run import WatchedRun
from passes.graph import aten, shape_of
from passes.laws import source_line
from passes.sites import BAGS, ids_of, site_name

if TYPE_CHECKING:
    from afm_fx.program.program import Program


def _id_outside(batch: Batch, node: Node, values: Mapping[Node, Any]) -> BatchError | None:
    """The error for a look-up with an id outside its table, None where the node is something else."""
    source, table = ids_of(node) if node.op == "call_function" else None, node.args[0] if node.args else None
    if source is None or not isinstance(table, Node):
        return None
    counts_from_end = node.target is aten.index.Tensor
    if table.op != "get_attr" and counts_from_end:
        return None  # a selection from features, not a look-up
    ids, rows = values[source], values[table].shape[0]
    lowest = -rows if counts_from_end else 0
    outside = (ids < lowest) | (ids >= rows)
    if ids.dtype == torch.bool or not outside.any():
        return None
    position = outside.nonzero()[0].tolist()
    row = position[0] // _ids_per_row(source) if position and node.target in BAGS else next(iter(position), 0)
    what = f"{batch.place(row)}: id {int(ids[tuple(position)])} of {_field(batch, node, source)}"
    return id_outside(what, _table_name(table), lowest, rows - 1)


def _not_finite(batch: Batch, node: Node, value: Tensor) -> CalibrationError:
    """The error for a value that is not finite."""
    position = (~value.isfinite()).nonzero()[0].tolist()
    what = batch.column(node.name, None) if node.op == "placeholder" else f"node '{node.name}' ({node.target})"
    place, where = source_line(node), batch.name
    if batch.origin is not None and position and value.shape[0] == batch.rows:  # axis 0 counts rows
        where = batch.place(position[0])
    return CalibrationError(
        f"{where}: {what} has the value {float(value[tuple(position)])} at position {position}"
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


def _field(batch: Batch, node: Node, ids: Node) -> str:
    """The input that an id came from: its name, with the column where it was sliced from a matrix."""
    column: int | None = None
    current: Any = ids
    while isinstance(current, Node) and current.op != "placeholder":
        cuts = current.target in (aten.slice.Tensor, aten.select.int) and len(current.args) > 2
        if cuts and current.args[1] != 0 and column is None and isinstance(current.args[2], int):
            column = current.args[2]
        current = current.all_input_nodes[0] if current.all_input_nodes else None
    return batch.column(current.name, column) if isinstance(current, Node) else f"node '{node.name}'"


@contextlib.contextmanager
def explained_failure(program: Program, batch: Batch, *, only_ids: bool = False) -> Iterator[None]:
    """Turns what goes wrong while the program runs on a batch into a typed error.

    Args:
        only_ids: let an error that no id causes through as it is.

    Raises:
        BatchError: the batch holds an id outside its table, or the model fails on it.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        culprit = find_culprit(program, batch)
        if culprit is not None:
            raise culprit from error
        if only_ids:
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BatchError(f"{batch.name}: the model fails on it: {reason[0]}") from error


def explain_non_finite(program: Program, suspects: Sequence[tuple[Batch, Tensor]]) -> AfmFxError:
    """The typed error for batches whose features at some site are not all finite (or overflow)."""
    for batch, rows in suspects:
        if not rows.isfinite().all():
            unexplained = CalibrationError(f"{batch.name} has NaN or infinite features")
            return find_culprit(program, batch, finite=True) or unexplained
    first, last = suspects[0][0].name, suspects[-1][0].name
    return CalibrationError(f"{first} to {last}: features are too large to square in float32")


def find_culprit(program: Program, batch: Batch, *, finite: bool = False) -> AfmFxError | None:
    """What is wrong with a batch: ids of the node that fails, or (``finite``) the first value that is not finite."""

    def watch(node: Node, value: Any) -> None:
        if finite and isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise _not_finite(batch, node, value)

    run = WatchedRun(program.graph_module, watch)
    try:
        with torch.no_grad():
            run.run_flat(program.cast_inputs(batch.leaves))
    except CalibrationError as error:
        return error
    except (IndexError, RuntimeError):
        return None if run.node is None else _id_outside(batch, run.node, run.env)
    return None
