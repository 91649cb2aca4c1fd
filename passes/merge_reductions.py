"""Merges sums over the same axis of one tensor's slices.

Replaces ``sum(g[..., a:b], axis), sum(g[..., c:d], axis)``
with     ``s[..., a:b], s[..., c:d]`` of one ``s = sum(g, axis)``.

So the linear term, whose weights stand beside the embedding in one row, is summed over the fields in the same sweep as
the embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes.assemble import Assembler
from passes.graph_pass import GraphPass
from passes.graph_tools import args_of, aten, call, finish, shape_of
from passes.provenance import Columns, FeatureColumns

RULE = "merge reductions"


@dataclass(frozen=True)
class _Sum:
    """A sum of whole fibres of one source.

    Attributes:
        node: the sum.
        source: number of the source.
        axis: axis of the source (the batch not counted) along which all is summed.
        places: for every feature of the result, its place in the source without that axis.
    """

    node: Node
    source: int
    axis: int
    places: Columns


class MergeReductions(GraphPass):
    """Replaces several sums over one axis of one tensor with one sum."""

    after = ("CollapseMoves",)
    """It merges sums over slices of one gather."""

    def call(self, graph_module: GraphModule) -> PassResult:
        columns = FeatureColumns(graph_module)
        found: dict[tuple[int, int], list[_Sum]] = {}
        for node in graph_module.graph.nodes:
            each = _sum_of(columns, node)
            if each is not None:
                found.setdefault((each.source, each.axis), []).append(each)
        changed = False
        for (source, axis), sums in found.items():
            if len(sums) > 1:
                _merge(graph_module, columns.node(source), axis, sums)
                changed = True
        changed |= finish(graph_module)
        return PassResult(graph_module, changed)


def _sum_of(columns: FeatureColumns, node: Node) -> _Sum | None:
    if node.op != "call_function" or node.target is not aten.sum.dim_IntList or node.kwargs:
        return None
    operand, axes = args_of(node)[0], args_of(node)[1]
    wanted = columns.of(operand)
    if wanted is None or not isinstance(axes, (list, tuple)) or not columns.is_move(operand):
        return None
    summed = sorted(int(axis) % (wanted.ndim + 1) - 1 for axis in axes)
    if not summed or summed[0] < 0:
        return None
    which, places = columns.sources(wanted.reshape(-1))
    if len(set(which.tolist())) != 1:
        return None
    source = int(which[0])
    trailing = tuple(shape_of(columns.node(source)) or ())[1:]
    terms = np.moveaxis(places.reshape(wanted.shape), summed, range(-len(summed), 0))
    terms = np.sort(terms.reshape(-1, math.prod(wanted.shape[axis] for axis in summed)), axis=1)
    for axis in range(len(trailing)):
        fibres = np.moveaxis(np.arange(math.prod(trailing)).reshape(trailing), axis, -1).reshape(-1, trailing[axis])
        if terms.shape[1] != trailing[axis] or len(trailing) < 2:
            continue
        first = {int(start): place for place, start in enumerate(fibres[:, 0])}
        chosen = [first.get(int(start), -1) for start in terms[:, 0]]
        if -1 not in chosen and np.array_equal(fibres[chosen], terms):
            return _Sum(node, source, axis, np.asarray(chosen, dtype=np.int64))
    return None


def _merge(module: GraphModule, source: Node, axis: int, sums: list[_Sum]) -> None:
    with module.graph.inserting_before(source.next):
        whole = call(module.graph, aten.sum.dim_IntList, source, [axis + 1], rule=RULE, like=sums[0].node)
    columns = FeatureColumns(module)
    base = columns.of(whole)
    if base is None:
        raise AssertionError("a sum over features is [batch, ...]")
    assembler = Assembler(module, columns, RULE)
    for each in sums:
        shape = tuple(shape_of(each.node) or ())[1:]
        with module.graph.inserting_before(each.node):
            made = assembler.assemble(base.reshape(-1)[each.places].reshape(shape), each.node)
        each.node.replace_all_uses_with(made)
        module.graph.erase_node(each.node)
