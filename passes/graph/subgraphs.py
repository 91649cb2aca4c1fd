"""Branches and loops: nodes that run graphs of their own (``cond``, ``while_loop``, ``scan``, ``map``).

Such a node takes its graphs as ``get_attr`` nodes and passes them its other operands. Every one of these operators
hands what its graphs only read (weights among it) over last, so operands and placeholders are matched from the end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.graph.nodes import get_attribute


def runs_subgraphs(node: Node) -> bool:
    """Whether the node runs graphs of its own."""
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def subgraphs_of(module: GraphModule, node: Node) -> list[GraphModule]:
    """The graphs that a node runs."""
    found = [_attribute(module, operand) for operand in node.all_input_nodes if operand.op == "get_attr"]
    return [each for each in found if isinstance(each, GraphModule)]


def readers_inside(module: GraphModule, node: Node, operand: Node) -> Iterator[tuple[Node, Node]]:
    """Pairs of a node inside the graphs of ``node``, graphs within them included, and what it knows the operand as."""
    leaves = [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)]
    operands = [leaf for leaf in leaves if not isinstance(_attribute(module, leaf), GraphModule)]
    for inner in subgraphs_of(module, node):
        placeholders = [each for each in inner.graph.nodes if each.op == "placeholder"]
        for passed, placeholder in zip(reversed(operands), reversed(placeholders), strict=False):
            if passed is operand:
                for user in placeholder.users:
                    yield user, placeholder
                    if runs_subgraphs(user):
                        yield from readers_inside(inner, user, placeholder)


def _attribute(module: GraphModule, node: Node) -> object:
    return get_attribute(module, str(node.target)) if node.op == "get_attr" else None
