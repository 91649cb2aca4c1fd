"""Takes the sigmoid off a model's outputs, so that what comes out are logits.

Replaces ``output(move(sigmoid(z)))`` with ``output(move(z))``.

Errors and gradients are taken on logits: probabilities saturate, and equal changes of a logit are equal changes of the
odds. An output that is no sigmoid, or one that is computed with further, stays as it is.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from passes.graph import MOVES, GraphPass, args_of, aten


class ExposeLogits(GraphPass):
    """Lets outputs read the operand of every sigmoid that reaches them through moves alone."""

    def rewrite(self, graph_module: GraphModule) -> None:
        only_output: set[Node] = set()
        for node in reversed(graph_module.graph.nodes):
            if node.op == "output" or (node.target in MOVES and node.users and only_output.issuperset(node.users)):
                only_output.add(node)
        for node in list(graph_module.graph.nodes):
            if node.target is aten.sigmoid.default and not only_output.isdisjoint(node.users):
                node.replace_all_uses_with(args_of(node)[0], delete_user_cb=only_output.__contains__)
