"""Assertions on ids, for compilers whose lookups do not check them well.

A lookup in eager torch refuses an id outside its table. In code that Inductor compiles, a negative id wraps around to
the table's end (pytorch#151918, up to torch 2.12), and where loops run on several threads an id beyond the end ends the
whole process, for an exception cannot leave such a loop. So ids are asserted before the lookups, in one reduction per
tensor of ids: the runtime raises an error that names the table (or the input, where packing has joined its tables).

The graph is no longer functional then: what is asserted has no result. It is for a compiler, not for further passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from passes.graph import aten, buffer, call, constant_of, value_of
from passes.sites import BAGS, IdBound, bag_arguments, site_name

RULE = "assert ids"


def assert_ids(module: GraphModule, bounds: Sequence[IdBound] = ()) -> None:
    """Puts an assertion before every lookup in a table that is a constant, and one for every bound of an input column.

    Args:
        module: changed in place.
        bounds: ids of input columns that read packed tables, where the ranges of the tables before packing hold.
    """
    graph = module.graph
    for node in list(graph.nodes):
        looked_up = _looked_up(node)
        weight = None if looked_up is None else constant_of(module, looked_up[1])
        if looked_up is None or weight is None:
            continue
        ids, table = looked_up
        with graph.inserting_before(node):
            _assert_range(ids, 0, weight.shape[0], str(table.target), node)
    inputs = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    anchor = next(node for node in graph.nodes if node.op not in {"placeholder", "get_attr"})
    with graph.inserting_before(anchor):
        for name in dict.fromkeys(bound.input for bound in bounds):
            _assert_columns(module, inputs[name], [bound for bound in bounds if bound.input == name], anchor)
    graph.lint()
    module.recompile()


def _looked_up(node: Node) -> tuple[Node, Node] | None:
    """The ids and the table of a lookup that takes no negative ids, None for other nodes."""
    ids, table = None, None
    if node.target is aten.embedding.default:
        table, ids = node.args[0], node.args[1]
    elif node.target in BAGS:
        arguments = bag_arguments(node)
        table, ids = arguments["weight"], arguments["indices"]
    return (ids, table) if isinstance(ids, Node) and isinstance(table, Node) else None


def _assert_range(ids: Node, low: int, high: int, table: str, like: Node) -> None:
    """Asserts ``low <= ids < high`` for all of them."""
    from_low = call(ids.graph, aten.ge.Scalar, ids, low, rule=RULE, like=like)
    to_high = call(ids.graph, aten.lt.Scalar, ids, high, rule=RULE, like=like)
    _assert_all(from_low, to_high, f"an id is outside table '{site_name(table)}' (ids {low:,} to {high - 1:,})", like)


def _assert_columns(module: GraphModule, given: Node, bounds: Sequence[IdBound], like: Node) -> None:
    """The same for all columns of an input at once: an operator for each would take as long as a small batch."""
    graph, shape = module.graph, value_of(given).shape[1:]
    low = torch.full((shape.numel(),), torch.iinfo(torch.int64).min)
    last = torch.full((shape.numel(),), torch.iinfo(torch.int64).max)
    for bound in bounds:
        low[bound.column] = max(int(low[bound.column]), bound.low)
        last[bound.column] = min(int(last[bound.column]), bound.high - 1)
    ids = given
    if value_of(given).dtype is not torch.int64:  # in float32 the ends of a large table would be rounded
        ids = call(graph, aten._to_copy.default, given, rule=RULE, dtype=torch.int64)
    ends = [
        buffer(module, f"id_{name}", each.reshape(shape).to(value_of(given).device), rule=RULE)
        for name, each in (("low", low), ("last", last))
    ]
    from_low = call(graph, aten.ge.Tensor, ids, ends[0], rule=RULE, like=like)
    to_last = call(graph, aten.le.Tensor, ids, ends[1], rule=RULE, like=like)
    _assert_all(from_low, to_last, f"an id in input '{given.name}' is outside the table of its column", like)


def _assert_all(one: Node, other: Node, message: str, like: Node) -> None:
    graph = one.graph
    both = call(graph, aten.logical_and.default, one, other, rule=RULE, like=like)
    whole = call(graph, aten.all.default, both, rule=RULE, like=like)
    node = graph.call_function(torch.ops.aten._assert_async.msg, (whole, message))
    node.meta["val"] = None
