"""Convolutions of one position, where Linears are applied to features that stand in front of positions.

Replaces ``transpose(linear(... linear(transpose(x), W1, b1) ..., Wk, bk))``
with     ``conv1d(... conv1d(x, W1, b1) ..., Wk, bk)``, one Linear or several:

runtimes multiply in place what the transposes would move twice. It is the way back of :mod:`passes.unify_linears`, for
what was factored in between too.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes.graph_pass import GraphPass
from passes.graph_tools import (
    args_of,
    aten,
    call,
    derived_name,
    finish,
    get_attribute,
    parameter,
    rank_of,
    replace_node,
    weighted_call,
)

RULE = "pointwise convolution"


class PointwiseConvolutions(GraphPass):
    """Applies Linears between two transposes as convolutions."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = False
        made: dict[Node, Node] = {}
        for node in list(graph_module.graph.nodes):
            if not _swaps(node):
                continue
            linears = _linears_before(graph_module, node)
            if not linears:
                continue
            with graph_module.graph.inserting_before(node):
                _rewrite(graph_module, node, linears, made)
            changed = True
        changed |= finish(graph_module)
        return PassResult(graph_module, changed)


def _swaps(node: Node) -> bool:
    """Whether a node swaps the last two axes of three."""
    if node.op != "call_function" or rank_of(node) != 3:
        return False
    axes = args_of(node)[1:]
    if node.target is aten.transpose.int:
        return {axis % 3 for axis in axes} == {1, 2}
    return node.target is aten.permute.default and [axis % 3 for axis in axes[0]] == [0, 2, 1]


def _linears_before(module: GraphModule, node: Node) -> list[Node]:
    """The Linears between this swap and one before them, in order; none where anything else reads what they give."""
    linears: list[Node] = []
    source = args_of(node)[0]
    while weighted_call(module, source, aten.linear.default) is not None and len(source.users) == 1:
        linears.insert(0, source)
        source = source.args[0]
    return linears if _swaps(source) else []


def _rewrite(module: GraphModule, node: Node, linears: list[Node], made: dict[Node, Node]) -> None:
    value = args_of(args_of(linears[0])[0])[0]
    for linear in linears:
        _, weight, *bias = args_of(linear)
        if weight not in made:
            held = get_attribute(module, weight.target)
            name = derived_name(weight.target, "kernel")
            kernel = held.detach().unsqueeze(-1)
            made[weight] = parameter(module, name, kernel, rule=RULE, trainable=held.requires_grad)
        value = call(module.graph, aten.conv1d.default, value, made[weight], *bias, rule=RULE, like=linear)
    replace_node(node, value)
