"""Row lookups in one form.

Replaces ``index_select(T, 0, ids)``                             with ``embedding(T, ids)``,
         ``gather(T, 0, ids expanded over the columns)``         with ``embedding(T, ids)``

for a table ``T`` of two axes that the graph holds. Both take the same rows and refuse the same ids.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from passes.graph import aten, call, constant_of, rewrite_each, shape_of, value_of

RULE = "row lookup"
_REPEATS = frozenset({aten.expand.default, aten.repeat.default})
_ROWS = (0, -2)
"""What the axis of the rows is called."""


def unify_row_lookups(module: GraphModule) -> bool:
    """Rewrites every row lookup of a table; tells whether there was any."""
    return rewrite_each(module, _as_lookup)


def _as_lookup(module: GraphModule, node: Node) -> Node | None:
    if node.target not in (aten.index_select.default, aten.gather.default):
        return None
    table, axis, ids = node.args[:3]
    tensor = constant_of(module, table)
    if tensor is None or tensor.dim() != 2 or not tensor.is_floating_point() or axis not in _ROWS:
        return None
    if not isinstance(ids, Node) or value_of(ids).dtype not in (torch.int32, torch.int64):
        return None
    if node.target is aten.gather.default:
        column = _repeated_column(ids, width=tensor.shape[1])
        ids = None if column is None else call(node.graph, aten.squeeze.dim, column, 1, rule=RULE, like=node)
    elif len(shape_of(ids) or ()) != 1:
        return None
    return None if ids is None else call(node.graph, aten.embedding.default, table, ids, rule=RULE, like=node)


def _repeated_column(ids: Node, width: int) -> Node | None:
    """The one column [rows, 1] of ids that was repeated to all ``width`` columns of the table."""
    source, shape = ids.args[0] if ids.target in _REPEATS else None, shape_of(ids)
    if not isinstance(source, Node) or shape is None or len(shape) != 2 or shape[1] != width:
        return None
    # Along the rows nothing may be repeated: only then is row k of the result the row of the column's id k.
    rows = shape_of(source)
    column = rows is not None and len(rows) == 2 and str(rows[1]) == "1"
    return source if column and rows is not None and str(rows[0]) == str(shape[0]) else None
