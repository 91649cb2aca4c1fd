"""Joins neighbouring small Linears whose outputs a concat puts side by side into block-diagonal ones.

Replaces ``cat([W1 x1 + b1, ..., Wk xk + bk], 1)``
with     ``cat([diag(W1, ..., Wi) cat(x1, ..., xi) + (b1, ..., bi), ...], 1)``.

Restoring the features of many fields is such a concat: one decoder per field, a few codes wide. A matrix product of a
few inputs costs little more than its call; one block for everything multiplies mostly zeros. So neighbours are joined
while the zeros cost less than the calls, the copies and the unused vector lanes that joining saves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph import (
    GraphPass,
    WeightedCall,
    args_of,
    aten,
    call,
    emit_linear,
    is_call,
    rank_of,
    replace_node,
    weighted_call,
)
from passes.serving.serving_cost import PIECE_US, PRODUCTS_PER_US, products

RULE = "block linears"


class BlockLinears(GraphPass):
    """Replaces small Linears beside each other in a concat with fewer, block-diagonal ones."""

    after = ("MergeLinears",)
    """Linears that merge with others need no block."""

    def rewrite(self, graph_module: GraphModule) -> None:
        for node in list(graph_module.graph.nodes):
            blocks = [block for run in _runs(graph_module, node) for block in _blocks(run) if len(block) > 1]
            if blocks:
                _join(graph_module, node, blocks)


def _runs(module: GraphModule, node: Node) -> Iterator[list[WeightedCall]]:
    """Neighbouring operands of a concat of features that are Linears of their own."""
    if not is_call(node, aten.cat.default) or rank_of(node) != 2 or args_of(node)[1:] not in ((1,), (-1,)):
        return
    operands = args_of(node)[0]
    run: list[WeightedCall] = []
    for operand in operands:
        small = _small(module, operand, operands.count(operand))
        if small is None or (run and small.weight.dtype != run[0].weight.dtype):
            if len(run) > 1:
                yield run
            run = []
        if small is not None:
            run.append(small)
    if len(run) > 1:
        yield run


def _small(module: GraphModule, node: Node, uses: int) -> WeightedCall | None:
    """A Linear with a weight of its own that nothing but one concat reads."""
    linear = weighted_call(module, node, aten.linear.default)
    if linear is None or not linear.is_only_reader:
        return None
    return linear if len(node.users) == 1 and uses == 1 and rank_of(node) == 2 else None


def _blocks(run: Sequence[WeightedCall]) -> list[Sequence[WeightedCall]]:
    """The fewest blocks of about equal length of which none costs more per row than its Linears do alone."""
    for count in range(1, len(run)):
        bounds = [round(position * len(run) / count) for position in range(count + 1)]
        blocks = [run[start:end] for start, end in itertools.pairwise(bounds)]
        if all(_block_us(block) <= sum(_block_us([each]) for each in block) for block in blocks):
            return blocks
    return [[each] for each in run]


def _block_us(block: Sequence[WeightedCall]) -> float:
    """Microseconds per row of one block-diagonal product, its piece of the concat included."""
    inputs, outputs = (sum(each.weight.shape[axis] for each in block) for axis in (1, 0))
    return products(inputs, outputs) / PRODUCTS_PER_US + 2 * PIECE_US


def _join(module: GraphModule, concat: Node, blocks: Sequence[Sequence[WeightedCall]]) -> None:
    """Puts a concat in the place of another that reads every block as one Linear."""
    graph = module.graph
    with graph.inserting_before(concat):
        joined = {block[0].node: _block_diagonal(module, block, concat) for block in blocks}
        gone = {each.node for block in blocks for each in block[1:]}
        operands = [joined.get(each, each) for each in args_of(concat)[0] if each not in gone]
        made = operands[0]
        if len(operands) > 1:
            made = call(graph, aten.cat.default, operands, 1, rule=RULE, like=concat)
    replace_node(concat, made)


@torch.no_grad()
def _block_diagonal(module: GraphModule, block: Sequence[WeightedCall], concat: Node) -> Node:
    """One Linear for a block's, before the graph's insertion point."""
    trainable = any(each.weight.requires_grad for each in block)
    weight: Tensor = torch.block_diag(*(each.weight for each in block))  # type: ignore[no-untyped-call]
    source = call(module.graph, aten.cat.default, [each.source for each in block], 1, rule=RULE, like=concat)
    bias = None
    if any(each.bias is not None for each in block):
        bias = torch.cat([weight.new_zeros(len(each.weight)) if each.bias is None else each.bias for each in block])
    first = block[0]
    return emit_linear(
        module, source, weight, bias, first.name, "block", rule=RULE, like=first.node, trainable=trainable
    )
