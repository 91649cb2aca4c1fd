"""Unrolls bags of one length: a pooled lookup becomes a lookup and a sum, which every runtime has.

Replaces ``embedding_bag(T, reshape(x, [-1]), arange(0, n * batch, n))`` with ``sum(embedding(T, x), 1)``

for ids ``x`` [batch, n] (and ``mean`` alike), so that no loop over bags is left to the exporter and the table can be
packed.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from passes.graph_tools import args_of, aten, call, constant_of, finish, shape_of, value_of

RULE = "unroll bags"
_BAGS = frozenset(
    {
        aten.embedding_bag.padding_idx, aten.embedding_bag.default, aten._embedding_bag.default,
        aten._embedding_bag_forward_only.default,
    }
)  # fmt: skip
_SUM, _MEAN = 0, 1


class UnrollBags(PassBase):
    """Replaces bags of a fixed length, summed or averaged, with a lookup and a reduction."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = False
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and node.target in _BAGS:
                changed |= _unroll(graph_module, node)
        finish(graph_module)
        return PassResult(graph_module, changed)


def _unroll(module: GraphModule, node: Node) -> bool:
    arguments = [*args_of(node), *[None] * 9][:9]
    table, indices, offsets, _, mode, _, weights, includes_last, padding = arguments
    padded = isinstance(padding, int) and padding >= 0
    if (
        constant_of(module, table) is None
        or mode not in (None, _SUM, _MEAN)
        or weights is not None
        or includes_last
        or padded
    ):
        return False
    used = [user for user in node.users if user.users]
    if not all(user.target is operator.getitem and args_of(user)[1] == 0 for user in used):
        return False
    ids = _bags_of_one_length(indices, offsets)
    if ids is None:
        return False
    with module.graph.inserting_before(node):
        rows = call(module.graph, aten.embedding.default, table, ids, rule=RULE, like=node)
        reduction = aten.mean.dim if mode == _MEAN else aten.sum.dim_IntList
        pooled = call(module.graph, reduction, rows, [1], rule=RULE, like=node)
    for user in used:
        user.replace_all_uses_with(pooled)
    return True


def _bags_of_one_length(indices: object, offsets: object) -> Node | None:
    """Ids [batch, n] whose rows are the bags."""
    if not isinstance(indices, Node) or not isinstance(offsets, Node) or indices.target is not aten.reshape.default:
        return None
    ids: Node = args_of(indices)[0]
    shape = shape_of(ids)
    if shape is None or len(shape) != 2 or not isinstance(shape[1], int) or len(shape_of(indices) or ()) != 1:
        return None
    if offsets.target is not aten.arange.start_step or value_of(offsets).dtype not in (torch.int64, torch.int32):
        return None
    start, step = args_of(offsets)[0], args_of(offsets)[2] if len(args_of(offsets)) > 2 else 1
    starts = shape_of(offsets)
    if start != 0 or step != shape[1] or starts is None or str(starts[0]) != str(shape[0]):
        return None
    return ids
