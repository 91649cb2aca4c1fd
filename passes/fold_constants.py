"""Folds constants: what does not depend on a batch is computed once, and additions of zero go.

Replaces ``f(weights)``                        with a parameter that holds the result,
         ``zeros + x``, ``x + zeros``          with ``x``,
         ``reshape(x, [batch, ...])``          with ``reshape(x, [-1, ...])``, which needs no size at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult
from torch.utils import _pytree as pytree

from passes.graph_pass import GraphPass
from passes.graph_tools import (
    args_of,
    aten,
    call,
    constant_of,
    derived_name,
    finish,
    parameter,
    same_form,
)

RULE = "fold constants"

_ZEROS = frozenset({aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default})
_VIEWS = frozenset({aten.expand.default, aten.repeat.default})


class FoldConstants(GraphPass):
    """Replaces constant subgraphs by their values, and sums with zero by the other term."""

    after = ("PointwiseConvolutions", "UnpoolBags")
    """A convolution's own kernel is a constant, its transposes are not; a bag's arguments are read as written."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = _fold(graph_module)
        changed |= _drop_zeros(graph_module)
        changed |= _free_reshapes(graph_module)
        changed |= finish(graph_module)
        return PassResult(graph_module, changed)


def _fold(module: GraphModule) -> bool:
    constants: dict[Node, Tensor] = {}
    for node in module.graph.nodes:
        value = constant_of(module, node)
        if value is not None:
            constants[node] = value
        elif _foldable(node, constants):
            args, kwargs = pytree.tree_map(
                lambda leaf: constants[leaf] if isinstance(leaf, Node) else leaf, (args_of(node), node.kwargs)
            )
            with torch.no_grad():
                result = node.target(*args, **kwargs)
            if isinstance(result, Tensor):
                constants[node] = result
    changed = False
    for node, result in list(constants.items()):
        if node.op != "call_function" or all(user in constants for user in node.users):
            continue
        trained = any(each.requires_grad for each in _roots(module, node))
        name = derived_name(next(iter(_names(node)), "constant"), "folded")
        made = parameter(module, name, result.detach().clone(), rule=RULE, trainable=trained)
        node.replace_all_uses_with(made)
        changed = True
    return changed


def _foldable(node: Node, constants: dict[Node, Tensor]) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or node.target in _VIEWS:
        return False
    operands = node.all_input_nodes
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return bool(operands) and not random and all(operand in constants for operand in operands)


def _roots(module: GraphModule, node: Node) -> list[Tensor]:
    pending, found, seen = [node], [], set[Node]()
    while pending:
        one = pending.pop()
        if one in seen:
            continue
        seen.add(one)
        tensor = constant_of(module, one)
        if tensor is not None:
            found.append(tensor)
        pending += one.all_input_nodes
    return found


def _names(node: Node) -> list[str]:
    pending, found = [node], []
    while pending:
        one = pending.pop(0)
        if one.op == "get_attr":
            found.append(str(one.target))
            break
        pending += one.all_input_nodes
    return found


def _drop_zeros(module: GraphModule) -> bool:
    changed = False
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.add.Tensor or node.kwargs:
            continue
        left, right = args_of(node)[:2]
        for zero, other in ((left, right), (right, left)):
            if isinstance(zero, Node) and zero.target in _ZEROS and isinstance(other, Node) and same_form(node, other):
                node.replace_all_uses_with(other)
                module.graph.erase_node(node)
                changed = True
                break
    return changed


def _free_reshapes(module: GraphModule) -> bool:
    changed = False
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.reshape.default:
            continue
        sizes = list(args_of(node)[1])
        symbolic = [position for position, size in enumerate(sizes) if isinstance(size, Node)]
        if len(symbolic) == 1 and all(
            isinstance(size, int) and size > 0 for size in sizes if not isinstance(size, Node)
        ):
            sizes[symbolic[0]] = -1
            with module.graph.inserting_before(node):
                made = call(module.graph, aten.reshape.default, args_of(node)[0], sizes, rule=RULE, like=node)
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)
            changed = True
    return changed
