"""Folds constants: what does not depend on a batch is computed once, and additions of zero go.

Replaces ``f(weights)``                        with a parameter that holds the result,
         ``zeros + x``, ``x + zeros``          with ``x``,
         ``reshape(x, [batch, ...])``          with ``reshape(x, [-1, ...])``, which needs no size at run time.

Where a weight is read otherwise too (``t(E)`` of a table ``E`` that is looked up), it stays, and a result larger than
the weights that go would be kept beside it: it is computed from them as before.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.graph import (
    GraphPass,
    args_of,
    aten,
    call,
    constant_of,
    derived_name,
    is_call,
    parameter,
    rewrite_each,
    same_form,
)

RULE = "fold constants"

_ZEROS = frozenset({aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default})
_VIEWS = frozenset({aten.expand.default, aten.repeat.default})


class FoldConstants(GraphPass):
    """Replaces constant subgraphs by their values, and sums with zero by the other term."""

    after = ("PointwiseConvolutions", "UnpoolBags")
    """A convolution's own kernel is a constant, its transposes are not; a bag's arguments are read as written."""

    def rewrite(self, graph_module: GraphModule) -> None:
        _fold(graph_module)
        rewrite_each(graph_module, _without_zero)
        rewrite_each(graph_module, _with_free_batch)


def _fold(module: GraphModule) -> None:
    constants: dict[Node, Tensor] = {}
    roots: dict[Node, list[Node]] = {}  # the parameters and buffers that a constant is made of
    for node in module.graph.nodes:
        value = constant_of(module, node)
        if value is not None:
            constants[node], roots[node] = value, [node]
        elif _foldable(node, constants):
            args, kwargs = pytree.tree_map(
                lambda leaf: constants[leaf] if isinstance(leaf, Node) else leaf, (args_of(node), node.kwargs)
            )
            with torch.no_grad():
                result = node.target(*args, **kwargs)
            if isinstance(result, Tensor):
                constants[node] = result
                roots[node] = list(dict.fromkeys(root for each in node.all_input_nodes for root in roots[each]))
    for node in _worth_keeping(constants, roots):
        result = constants[node]
        trained = any(constants[root].requires_grad for root in roots[node])
        name = derived_name(str(roots[node][0].target), "folded")
        node.replace_all_uses_with(parameter(module, name, result.detach().clone(), rule=RULE, trainable=trained))


def _worth_keeping(constants: dict[Node, Tensor], roots: dict[Node, list[Node]]) -> list[Node]:
    """The results that take the place of calls: those that something else than a constant reads."""
    results = [
        node for node in constants if node.op == "call_function" and not all(user in constants for user in node.users)
    ]
    while True:
        stay = {node for node in constants if node.op == "get_attr"} - _gone(constants, results, roots)
        larger = [
            node
            for node in results
            if not stay.isdisjoint(roots[node])
            and constants[node].numel() > sum(constants[root].numel() for root in roots[node] if root not in stay)
        ]
        if not larger:
            return results
        results = [node for node in results if node not in larger]


def _gone(constants: dict[Node, Tensor], results: list[Node], roots: dict[Node, list[Node]]) -> set[Node]:
    """The parameters and buffers that nothing reads once the results are there."""
    needed = set[Node]()
    for node in reversed(constants):
        others = [user for user in node.users if user not in constants or user in needed]
        if others and node not in results:
            needed.add(node)
    return {node for node in constants if node.op == "get_attr" and node not in needed}


def _foldable(node: Node, constants: dict[Node, Tensor]) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or node.target in _VIEWS:
        return False
    operands = node.all_input_nodes
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return bool(operands) and not random and all(operand in constants for operand in operands)


def _without_zero(module: GraphModule, node: Node) -> Node | None:
    """The other term of a sum with zeros."""
    if not is_call(node, aten.add.Tensor):
        return None
    for zero, term in (node.args, node.args[::-1]):
        if isinstance(zero, Node) and zero.target in _ZEROS and isinstance(term, Node) and same_form(node, term):
            return term
    return None


def _with_free_batch(module: GraphModule, node: Node) -> Node | None:
    """A reshape whose one symbolic size is what the other sizes leave."""
    if not is_call(node, aten.reshape.default):
        return None
    source, sizes = args_of(node)
    known = [size for size in sizes if not isinstance(size, Node)]
    if len(sizes) - len(known) != 1 or not all(isinstance(size, int) and size > 0 for size in known):
        return None
    free = [-1 if isinstance(size, Node) else size for size in sizes]
    return call(module.graph, aten.reshape.default, source, free, rule=RULE, like=node)
