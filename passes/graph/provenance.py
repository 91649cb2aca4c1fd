"""Provenance: where every feature of a tensor ``[batch, ...]`` comes from, through everything that only moves.

A *source* is a tensor that something computes (an input, a lookup, a Linear). ``cat``, ``slice``, ``reshape`` and their
kin compute nothing: what they return is an array of the sources' columns. The array is found by running the operator
itself on numbered columns, so that no operator's indexing is written down a second time here.

An *id* is traced further: through casts to integers and constant offsets to the column of an input that holds it.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.graph.nodes import args_of, aten, constant_of, is_call, known_true, shape_of, value_of, weighted_call

_PICKS = frozenset(
    {
        aten.expand.default, aten.repeat.default, aten.flip.default, aten.gather.default, aten.index.Tensor,
        aten.index_select.default,
    }
)  # fmt: skip
"""Moves that repeat or pick elements: one of them is cheaper than the pieces that say the same, so their results are
sources."""

MOVES = _PICKS | {
    aten.cat.default, aten.stack.default, aten.reshape.default, aten.view.default, aten._unsafe_view.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.slice.Tensor, aten.select.int, aten.unsqueeze.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.split.Tensor, aten.split_with_sizes.default,
    aten.chunk.default, aten.unbind.int, operator.getitem, aten.transpose.int, aten.permute.default, aten.t.default,
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
    aten.lift_fresh_copy.default,
}  # fmt: skip
"""Operators that move the elements of what they are given first and change none."""

KEEPS_IDS = MOVES | {
    aten._to_copy.default, aten.to.dtype, aten.floor.default, aten.round.default, aten.trunc.default,
    aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.masked_fill.Scalar,
    aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.add.Tensor,
    aten.sub.Tensor, aten.remainder.Scalar, aten.remainder.Tensor,
}  # fmt: skip
"""Operators whose output still holds ids where their input does: as they were, shifted, or put back into a range."""

_PERMUTATIONS = frozenset({aten.transpose.int, aten.permute.default})
"""These move features too, but one ``transpose`` is cheaper than the slices that say the same."""

Columns = np.ndarray[Any, np.dtype[np.int64]]

_TRIAL_ROWS = 3
_ROW = 2**40


def batch_size(module: GraphModule) -> Any:
    """The length of the batch: the commonest symbolic axis 0 of the inputs, or else the commonest length; None."""
    first_axes = [shape[0] for node in module.graph.nodes if node.op == "placeholder" and (shape := shape_of(node))]
    symbolic = [size for size in first_axes if not isinstance(size, int)]
    named = {str(size): size for size in symbolic or first_axes}
    counted = Counter(str(size) for size in symbolic or first_axes)
    return named[counted.most_common(1)[0][0]] if counted else None


@dataclass(frozen=True)
class IdColumn:
    """One id per row: the number of the column that holds it, and the constant that is added to the integer."""

    column: int
    offset: int = 0


@dataclass(frozen=True)
class TracedLookup:
    """A lookup whose ids are traced to columns.

    Attributes:
        table: the table [rows, width].
    """

    node: Node
    name: str
    table: Tensor
    ids: tuple[IdColumn, ...]


class FeatureColumns:
    """The columns of every ``[batch, ...]`` tensor of one graph, computed when asked for."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.batch = batch_size(module)
        self._columns: dict[Node, Columns | tuple[Columns | None, ...] | None] = {}
        self._moves: set[Node] = set()
        self._sources: list[Node] = []
        self._starts: list[int] = []
        self._next = 0

    def of(self, node: Any) -> Columns | None:
        """The columns ``[*trailing]`` of a node ``[batch, *trailing]``; None for any other node."""
        columns = self._lookup(node)
        return columns if isinstance(columns, np.ndarray) else None

    def source(self, column: int) -> tuple[Node, int]:
        """The source of a column and its place among the source's features, row-major."""
        which = int(np.searchsorted(self._starts, column, side="right")) - 1
        return self._sources[which], int(column) - self._starts[which]

    def sources(self, columns: Columns) -> tuple[np.ndarray[Any, Any], Columns]:
        """For every column the number of its source (see :meth:`node`) and its place there."""
        which = np.searchsorted(self._starts, columns, side="right") - 1
        return which, columns - np.asarray(self._starts, dtype=np.int64)[which]

    def node(self, number: int) -> Node:
        """The source of a number."""
        return self._sources[number]

    def is_batch(self, size: Any) -> bool:
        """Whether a length is the batch's."""
        return self.batch is not None and known_true(size == self.batch)

    def trailing(self, node: Node) -> tuple[int, ...] | None:
        """The static axes after the batch; None where the node is not ``[batch, static ...]``."""
        shape = shape_of(node)
        if not shape or not self.is_batch(shape[0]) or not all(isinstance(size, int) for size in shape[1:]):
            return None
        return shape[1:]

    def is_move(self, node: Node) -> bool:
        """Whether the node only moves features within rows."""
        return self._lookup(node) is not None and node in self._moves

    def lookups(self) -> list[TracedLookup]:
        """The lookups whose ids can be traced to columns, in graph order; none in rows that a lookup rescales."""
        found = []
        for node in self.module.graph.nodes:
            lookup = weighted_call(self.module, node, aten.embedding.default)
            if lookup is None or self.trailing(node) is None:
                continue
            rescaled = any(user.target is aten.embedding_renorm.default for user in args_of(node)[0].users)
            ids = None if rescaled else self.ids(lookup.source)
            if ids:
                found.append(TracedLookup(node, lookup.name, lookup.weight, ids))
        return found

    def ids(self, index: Node) -> tuple[IdColumn, ...] | None:
        """The ids of an index ``[batch, ...]``, row-major; None where it is not such a tensor of integers."""
        wanted = self.of(index)
        if wanted is None or not _holds_integers(value_of(index)):
            return None
        which, places = self.sources(wanted.reshape(-1))
        behind = {number: self._ids_behind(self.node(number)) for number in set(which.tolist())}
        return tuple(
            IdColumn(int(column)) if (inner := behind[number]) is None else inner[place]
            for column, number, place in zip(wanted.reshape(-1), which.tolist(), places.tolist(), strict=True)
        )

    def _ids_behind(self, source: Node) -> tuple[IdColumn, ...] | None:
        """The ids of what a cast to integers or the addition of a constant is applied to; None for any other source."""
        before = args_of(source)[0] if source.op == "call_function" and args_of(source) else None
        columns = self.of(before)
        if columns is None or not isinstance(before, Node) or not isinstance(value_of(before), Tensor):
            return None
        if source.target is aten._to_copy.default and set(source.kwargs) <= {"dtype"}:
            if value_of(before).is_floating_point():
                return tuple(IdColumn(int(column)) for column in columns.reshape(-1))
            return self.ids(before)
        inner = self.ids(before) if is_call(source, aten.add.Tensor) else None
        trailing, added = self.trailing(source), self._integers(args_of(source)[-1])
        if inner is None or trailing is None or added is None or shape_of(before) != shape_of(source):
            return None
        if added.dim() > len(trailing):
            return None
        offsets = np.broadcast_to(added.numpy(), trailing).reshape(-1)
        return tuple(
            IdColumn(each.column, each.offset + int(offset)) for each, offset in zip(inner, offsets, strict=True)
        )

    def _integers(self, operand: object) -> Tensor | None:
        """An integer constant of an addition."""
        if isinstance(operand, int) and not isinstance(operand, bool):
            return torch.tensor(operand)
        tensor = constant_of(self.module, operand)
        return tensor.detach().cpu() if _holds_integers(tensor) else None

    def moves_behind(self, node: Node, known: Collection[Node] = ()) -> set[Node]:
        """The moves that a tensor is made by, itself among them; nothing behind those that are known."""
        found, pending = set[Node](), [node]
        while pending:
            one = pending.pop()
            if one not in found and self.is_move(one):
                found.add(one)
                pending += [] if one in known else one.all_input_nodes
        return found

    def _lookup(self, node: Any) -> Any:
        if not isinstance(node, Node):
            return None
        if node not in self._columns:
            moved = None
            if node.op == "call_function" and node.target in MOVES - _PICKS:
                moved = self._part(*args_of(node)) if node.target is operator.getitem else self._moved(node)
            self._columns[node] = self._new_source(node) if moved is None else moved
            if moved is not None:
                self._moves.add(node)
        return self._columns[node]

    def _new_source(self, node: Node) -> Columns | None:
        trailing = self.trailing(node)
        if trailing is None:
            return None
        start, width = self._next, math.prod(trailing)
        self._sources.append(node)
        self._starts.append(start)
        self._next += max(width, 1)
        return np.arange(start, start + width, dtype=np.int64).reshape(trailing)

    def _moved(self, node: Node) -> Any:
        """The columns of a move's result, or None where it is no move within rows."""
        operands = [each for each in node.all_input_nodes if not is_size(each)]
        if not operands or any(self._lookup(each) is None for each in operands):
            return None
        if not _one_dtype(node, operands):
            return None
        rows = self.batch if isinstance(self.batch, int) else _TRIAL_ROWS

        def trial(leaf: Node) -> Any:
            if is_size(leaf):
                return self._size(value_of(leaf), rows)
            columns: Any = self._columns[leaf]
            several = isinstance(columns, tuple)
            return [_numbered(each, rows) for each in columns] if several else _numbered(columns, rows)

        result = run_on_positions(node, trial)
        if isinstance(result, (list, tuple)):
            parts = tuple(_within_rows(each, rows) for each in result)
            return None if any(part is None for part in parts) else parts
        columns = _within_rows(result, rows)
        if node.target in _PERMUTATIONS and columns is not None:
            before = self.of(operands[0])
            kept = before is not None and np.array_equal(before.reshape(-1), columns.reshape(-1))
            return columns if kept else None
        return columns

    def _part(self, several: Node, which: int) -> Columns | None:
        """The columns of one part of a split, without numbering the others."""
        parts = self._lookup(several)
        return parts[which] if isinstance(parts, tuple) else None

    def _size(self, size: Any, rows: int) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return int(expression.subs({self.batch.node.expr: rows}))


def run_on_positions(node: Node, positions: Callable[[Node], Any]) -> Any:
    """What an operator that only moves elements makes of tensors of numbers: where every element goes.

    Args:
        node: a call of one of :data:`MOVES`.
        positions: by operand, an integer tensor (a list of tensors for an operand that is several) in which every
            element has its number, or the number that stands for a size.

    Returns:
        The moved numbers, a list where the operator has several results; None where it does not take these shapes.
    """
    arguments = pytree.tree_map(
        lambda leaf: positions(leaf) if isinstance(leaf, Node) else leaf, (node.args, node.kwargs)
    )
    try:
        return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
    except (RuntimeError, TypeError, IndexError):
        return None


def _holds_integers(value: object) -> TypeGuard[Tensor]:
    dtype = value.dtype if isinstance(value, Tensor) else torch.bool
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def is_size(node: Node) -> bool:
    """Whether the node's value is a number, such as a length, and no tensor or list of tensors."""
    return not isinstance(value_of(node), (Tensor, list, tuple))


def _one_dtype(node: Node, operands: list[Node]) -> bool:
    """Whether nothing is promoted to another number format on the way."""
    values = [leaf for each in (node, *operands) for leaf in pytree.tree_leaves(value_of(each))]
    return len({leaf.dtype for leaf in values if isinstance(leaf, Tensor)}) == 1


def _numbered(columns: Columns, rows: int) -> Tensor:
    """``[rows, *trailing]``: every entry tells its column and its row."""
    row = torch.arange(rows, dtype=torch.int64).reshape(rows, *(1 for _ in columns.shape)) * _ROW
    return torch.from_numpy(np.ascontiguousarray(columns)) + row


def _within_rows(result: Any, rows: int) -> Columns | None:
    """The columns of one row, where every row holds the same columns of its own row."""
    if not isinstance(result, Tensor) or result.dim() == 0 or result.shape[0] != rows:
        return None
    columns = result[0].numpy()
    return columns if torch.equal(result, _numbered(columns, rows)) else None
