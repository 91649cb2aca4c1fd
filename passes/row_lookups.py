"""Row lookups in one form.

Replaces ``index_select(T, 0, ids)``                             with ``embedding(T, ids)``,
         ``gather(T, 0, ids expanded over the columns)``         with ``embedding(T, ids)``,
         ``matmul(one_hot(ids, rows of T), T)``                  with ``embedding(T, ids)``,
         ``take_along_dim(T, ids of one column, 0)``             with ``index(T, [ids])``

for a table ``T`` of two axes that the graph holds. All take the same rows and refuse the same ids; the last counts
negative ids from the end, and so does ``index``. A product with a one-hot matrix adds zeros to the row, which changes
nothing unless the table holds infinite numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from passes.graph_tools import aten, call, constant_of, rewrite_each, shape_of, value_of

RULE = "row lookup"
_REPEATS = frozenset({aten.expand.default, aten.repeat.default})
_ROWS = (0, -2)
"""What the axis of the rows is called."""


def unify_row_lookups(module: GraphModule) -> bool:
    """Rewrites every row lookup of a table; tells whether there was any."""
    return rewrite_each(module, _as_lookup)


def _as_lookup(module: GraphModule, node: Node) -> Node | None:
    rule = _RULES.get(node.target)
    if rule is None or not node.args:
        return None
    table = node.args[1] if rule is _one_hot_product else node.args[0]
    return rule(node, table) if isinstance(table, Node) and _is_table(module, table) else None


def _selected(node: Node, table: Node) -> Node | None:
    """``index_select(T, 0, ids)`` with ids of one axis."""
    axis, ids = node.args[1:3]
    if axis not in _ROWS or not isinstance(ids, Node) or len(shape_of(ids) or ()) != 1:
        return None
    return _embedding(node, table, ids)


def _gathered(node: Node, table: Node) -> Node | None:
    """``gather(T, 0, ids)`` where one column of ids is repeated over all columns of the table."""
    axis, ids = node.args[1:3]
    column = _repeated_column(ids, width=int(value_of(table).shape[1])) if axis in _ROWS else None
    return None if column is None else _embedding(node, table, _without_columns(node, column))


def _taken(node: Node, table: Node) -> Node | None:
    """``take_along_dim(T, ids, 0)`` with one column of ids, which torch repeats."""
    ids, axis = node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if axis not in _ROWS or not isinstance(ids, Node) or not _is_column(ids):
        return None
    return call(node.graph, aten.index.Tensor, table, [_without_columns(node, ids)], rule=RULE, like=node)


def _one_hot_product(node: Node, table: Node) -> Node | None:
    """``one_hot(ids, V) @ T`` with the one-hot numbers in the table's format."""
    one_hot = node.args[0]
    if not isinstance(one_hot, Node):
        return None
    source = one_hot.args[0] if one_hot.target is aten._to_copy.default else one_hot
    if not isinstance(source, Node) or source.target is not aten.one_hot.default or len(source.args) < 2:
        return None
    ids, classes = source.args
    if not isinstance(ids, Node) or classes != value_of(table).shape[0]:
        return None
    return _embedding(node, table, ids)


def _is_table(module: GraphModule, node: Node) -> bool:
    tensor = constant_of(module, node)
    return tensor is not None and tensor.dim() == 2 and tensor.is_floating_point()


def _repeated_column(ids: object, width: int) -> Node | None:
    """The one column [rows, 1] of ids that was repeated to all ``width`` columns of the table."""
    if not isinstance(ids, Node) or ids.target not in _REPEATS:
        return None
    source, shape = ids.args[0], shape_of(ids)
    if not isinstance(source, Node) or shape is None or len(shape) != 2 or shape[1] != width:
        return None
    # Along the rows nothing may be repeated: only then is row k of the result the row of the column's id k.
    rows = shape_of(source)
    return source if _is_column(source) and rows is not None and str(rows[0]) == str(shape[0]) else None


def _is_column(ids: Node) -> bool:
    shape = shape_of(ids)
    return shape is not None and len(shape) == 2 and isinstance(shape[1], int) and shape[1] == 1


def _without_columns(node: Node, column: Node) -> Node:
    return call(node.graph, aten.squeeze.dim, column, 1, rule=RULE, like=node)


def _embedding(node: Node, table: Node, ids: Node) -> Node | None:
    if value_of(ids).dtype not in (torch.int32, torch.int64):
        return None
    return call(node.graph, aten.embedding.default, table, ids, rule=RULE, like=node)


_RULES: dict[Any, Callable[[Node, Node], Node | None]] = {
    aten.index_select.default: _selected,
    aten.gather.default: _gathered,
    aten.take_along_dim.default: _taken,
    aten.matmul.default: _one_hot_product,
    aten.mm.default: _one_hot_product,
}
