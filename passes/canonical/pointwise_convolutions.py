"""Convolutions of one position, where Linears are applied to features that stand in front of positions.

Replaces ``transpose(linear(... linear(transpose(x), W1, b1) ..., Wk, bk))``
with     ``conv1d(... conv1d(x, W1, b1) ..., Wk, bk)``, one Linear or several:

runtimes multiply in place what the transposes would move twice. It is the way back of
:mod:`passes.canonical.unify_linears`, for what was factored in between too.
"""

from __future__ import annotations

from typing import cast

from torch.fx import GraphModule, Node

from passes.graph import (
    GraphPass,
    WeightedCall,
    args_of,
    aten,
    call,
    derived_name,
    parameter,
    rank_of,
    rewrite_each,
    weighted_call,
)

RULE = "pointwise convolution"


class PointwiseConvolutions(GraphPass):
    """Applies Linears between two transposes as convolutions."""

    def rewrite(self, graph_module: GraphModule) -> None:
        kernels: dict[str, Node] = {}
        rewrite_each(graph_module, lambda module, node: _convolutions(module, node, kernels))


def _convolutions(module: GraphModule, node: Node, kernels: dict[str, Node]) -> Node | None:
    """What stands for Linears between two swaps; kernels are those made so far, by the name of their weight."""
    linears = _linears_before(module, node) if _swaps(node) else []
    if not linears:
        return None
    value = args_of(linears[0].source)[0]
    for linear in linears:
        if linear.name not in kernels:
            kernels[linear.name] = parameter(
                module, derived_name(linear.name, "kernel"), linear.weight.detach().unsqueeze(-1), rule=RULE,
                trainable=linear.weight.requires_grad,
            )  # fmt: skip
        bias = args_of(linear.node)[2:]
        value = call(module.graph, aten.conv1d.default, value, kernels[linear.name], *bias, rule=RULE, like=linear.node)
    return cast(Node, value)


def _swaps(node: Node) -> bool:
    """Whether a node swaps the last two axes of three."""
    if node.op != "call_function" or rank_of(node) != 3:
        return False
    axes = args_of(node)[1:]
    if node.target is aten.transpose.int:
        return {axis % 3 for axis in axes} == {1, 2}
    return node.target is aten.permute.default and [axis % 3 for axis in axes[0]] == [0, 2, 1]


def _linears_before(module: GraphModule, node: Node) -> list[WeightedCall]:
    """The Linears between this swap and one before them, in order; none where anything else reads what they give."""
    linears: list[WeightedCall] = []
    source = args_of(node)[0]
    while (linear := weighted_call(module, source, aten.linear.default)) is not None and len(source.users) == 1:
        linears.insert(0, linear)
        source = linear.source
    return linears if _swaps(source) else []
