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
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes.graph_pass import GraphPass
from passes.graph_tools import args_of, aten, call, derived_name, finish, parameter, shape_of
from passes.linear_constants import weight_and_bias
from passes.serving_cost import PIECE_US, PRODUCTS_PER_US, products

RULE = "block linears"


class BlockLinears(GraphPass):
    """Replaces small Linears beside each other in a concat with fewer, block-diagonal ones."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = False
        for node in list(graph_module.graph.nodes):
            blocks = [block for run in _runs(graph_module, node) for block in _blocks(run) if len(block) > 1]
            if blocks:
                _join(graph_module, node, blocks)
                changed = True
        changed |= finish(graph_module)
        return PassResult(graph_module, changed)


@dataclass(frozen=True)
class _Small:
    """A Linear that nothing but one concat reads."""

    node: Node
    weight: Tensor
    bias: Tensor | None


def _runs(module: GraphModule, node: Node) -> Iterator[list[_Small]]:
    """Neighbouring operands of a concat of features that are Linears of their own."""
    if node.op != "call_function" or node.target is not aten.cat.default:
        return
    if len(shape_of(node) or ()) != 2 or (args_of(node)[1] if len(args_of(node)) > 1 else 0) not in (1, -1):
        return
    operands = args_of(node)[0]
    run: list[_Small] = []
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


def _small(module: GraphModule, node: Node, uses: int) -> _Small | None:
    constants = weight_and_bias(module, node)
    if constants is None or len(node.users) != 1 or uses != 1 or len(shape_of(args_of(node)[0]) or ()) != 2:
        return None
    return _Small(node, *constants)


def _blocks(run: Sequence[_Small]) -> list[Sequence[_Small]]:
    """The fewest blocks of about equal length of which none costs more per row than its Linears do alone."""
    for count in range(1, len(run)):
        bounds = [round(position * len(run) / count) for position in range(count + 1)]
        blocks = [run[start:end] for start, end in itertools.pairwise(bounds)]
        if all(_block_us(block) <= sum(_block_us([each]) for each in block) for block in blocks):
            return blocks
    return [[each] for each in run]


def _block_us(block: Sequence[_Small]) -> float:
    """Microseconds per row of one block-diagonal product, its piece of the concat included."""
    inputs, outputs = (sum(each.weight.shape[axis] for each in block) for axis in (1, 0))
    return products(inputs, outputs) / PRODUCTS_PER_US + 2 * PIECE_US


def _join(module: GraphModule, concat: Node, blocks: Sequence[Sequence[_Small]]) -> None:
    """Puts a concat in the place of another that reads every block as one Linear."""
    graph = module.graph
    with graph.inserting_before(concat):
        joined = {block[0].node: _block_diagonal(module, block, concat) for block in blocks}
        gone = {each.node for block in blocks for each in block[1:]}
        operands = [joined.get(each, each) for each in args_of(concat)[0] if each not in gone]
        made = operands[0]
        if len(operands) > 1:
            made = call(graph, aten.cat.default, operands, 1, rule=RULE, like=concat)
    concat.replace_all_uses_with(made)
    graph.erase_node(concat)


@torch.no_grad()
def _block_diagonal(module: GraphModule, block: Sequence[_Small], concat: Node) -> Node:
    """One Linear for a block's, before the graph's insertion point."""
    first = block[0]
    name = str(args_of(first.node)[1].target)
    trainable = any(each.weight.requires_grad for each in block)
    weight: Tensor = torch.block_diag(*(each.weight for each in block))  # type: ignore[no-untyped-call]
    source = call(module.graph, aten.cat.default, [args_of(each.node)[0] for each in block], 1, rule=RULE, like=concat)
    constants = [parameter(module, derived_name(name, "block"), weight, rule=RULE, trainable=trainable)]
    if any(each.bias is not None for each in block):
        bias = torch.cat([weight.new_zeros(len(each.weight)) if each.bias is None else each.bias for each in block])
        trainable = any(each.bias is not None and each.bias.requires_grad for each in block)
        constants.append(parameter(module, derived_name(name, "block", "bias"), bias, rule=RULE, trainable=trainable))
    return call(module.graph, aten.linear.default, source, *constants, rule=RULE, like=first.node)
