"""Bags of a known length as lookups and sums.

Replaces ``embedding_bag(T, reshape(ids, [-1]), arange(0, B L, L), sum)`` with ``sum(embedding(T, ids), 1)`` for ids
``[B, L]``, and ``mean`` with the mean; weights per id make it a weighted sum; a padding id is masked by zeros (and a
mean is taken over what is left, at least one).

Both are the same sum, in another order: equal up to rounding. Runtimes without bags get two operators instead of a
loop over the rows, and compute in the table's own number format.
"""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import GraphModule, Node

from passes.graph import GraphPass, args_of, aten, call, rewrite_each, shape_of, value_of
from passes.sites import BAGS, Pooling, bag_arguments, bag_length, bag_padding, pooling_of

RULE = "unpool bag"


class UnpoolBags(GraphPass):
    """Replaces every bag of a known length that is summed or averaged with a lookup and a sum."""

    def rewrite(self, graph_module: GraphModule) -> None:
        rewrite_each(graph_module, _pooled)


def _pooled(_: GraphModule, node: Node) -> Node | None:
    """The first result of a bag, where nothing reads the others."""
    bag = args_of(node)[0] if node.target is operator.getitem and args_of(node)[1] == 0 else None
    if not isinstance(bag, Node) or bag.target not in BAGS or list(bag.users) != [node]:
        return None
    length = bag_length(bag)
    return None if length is None or pooling_of(bag) is Pooling.MAX else _unpooled(bag, length)


def _unpooled(node: Node, length: int) -> Node:
    arguments = bag_arguments(node)
    ids = _in_rows(node, arguments["indices"], length)
    rows = _emit(node, aten.embedding.default, arguments["weight"], ids)
    weights, padding = arguments["per_sample_weights"], bag_padding(node)
    if weights is not None:
        column = _emit(node, aten.unsqueeze.default, _in_rows(node, weights, length), -1)
        rows = _emit(node, aten.mul.Tensor, rows, column)
    if padding is None:
        return _emit(node, aten.mean.dim if pooling_of(node) is Pooling.MEAN else aten.sum.dim_IntList, rows, [1])
    present = _emit(node, aten.unsqueeze.default, _emit(node, aten.ne.Scalar, ids, padding), -1)
    mask = _emit(node, aten._to_copy.default, present, dtype=value_of(rows).dtype)
    total = _emit(node, aten.sum.dim_IntList, _emit(node, aten.mul.Tensor, rows, mask), [1])
    if pooling_of(node) is Pooling.SUM:
        return total
    count = _emit(node, aten.clamp.default, _emit(node, aten.sum.dim_IntList, mask, [1]), 1)
    return _emit(node, aten.div.Tensor, total, count)


def _in_rows(node: Node, flat: Node, length: int) -> Node:
    """``[B L]`` seen as ``[B, L]``: what it was flattened from, where that had this shape."""
    source = flat.args[0] if flat.target is aten.reshape.default else None
    shape = shape_of(source) if isinstance(source, Node) else None
    if isinstance(source, Node) and shape is not None and len(shape) == 2 and str(shape[1]) == str(length):
        return source
    return _emit(node, aten.reshape.default, flat, [-1, length])


def _emit(node: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    return call(node.graph, target, *args, rule=RULE, like=node, **kwargs)
