"""Row lookups in one form.

Replaces ``index_select(T, 0, ids)``                             with ``embedding(T, ids)``,
         ``gather(T, 0, ids expanded over the columns)``         with ``embedding(T, ids)``,
         ``matmul(one_hot(ids, rows of T), T)``                  with ``embedding(T, ids)``,
         ``take_along_dim(T, ids of one column, 0)``             with ``index(T, [ids])``

for a table ``T`` of two axes that the graph holds. All take the same rows and refuse the same ids; the last counts negative
ids from the end, and so does ``index``. A product with a one-hot matrix adds zeros to the row, which changes nothing
unless the table holds infinite numbers.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from passes.graph_tools import aten, call, constant_of, shape_of, value_of

RULE = "row lookup"
_REPEATS = frozenset({aten.expand.default, aten.repeat.default})


def unify_row_lookups(module: GraphModule) -> bool:
    """Rewrites every row lookup of a table; tells whether there was any."""
    changed = False
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        with module.graph.inserting_before(node):
            found = _as_lookup(module, node)
        if found is not None:
            node.replace_all_uses_with(found)
            module.graph.erase_node(node)
            changed = True
    return changed


def _as_lookup(module: GraphModule, node: Node) -> Node | None:
    if node.target in (aten.matmul.default, aten.mm.default):
        return _one_hot_product(module, node)
    if node.target not in (aten.index_select.default, aten.gather.default, aten.take_along_dim.default):
        return None
    table = node.args[0]
    if not isinstance(table, Node) or not _is_table(module, table):
        return None
    if node.target is aten.index_select.default:
        _, axis, ids = node.args
        one_axis = isinstance(ids, Node) and len(shape_of(ids) or ()) == 1
        return _embedding(node, table, ids) if axis in (0, -2) and isinstance(ids, Node) and one_axis else None
    if node.target is aten.gather.default:
        _, axis, expanded = node.args
        column = _repeated_column(expanded, width=int(value_of(table).shape[1])) if axis in (0, -2) else None
        return None if column is None else _embedding(node, table, _without_columns(node, column))
    ids, axis = node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if axis not in (0, -2) or not isinstance(ids, Node) or not _is_column(ids):
        return None
    rows = _without_columns(node, ids)
    return call(node.graph, aten.index.Tensor, table, [rows], rule=RULE, like=node)


def _one_hot_product(module: GraphModule, node: Node) -> Node | None:
    """``one_hot(ids, V) @ T`` with the one-hot numbers in the table's format."""
    one_hot, table = node.args[:2]
    if not isinstance(table, Node) or not _is_table(module, table) or not isinstance(one_hot, Node):
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
