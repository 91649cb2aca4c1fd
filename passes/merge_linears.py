"""Merges Linears: with each other, with constants and scales around them, and with the sum they are a term of.

Replaces ``matmul(x, W)``, ``tensordot(x, W, [-1], [0])``
                                      with ``linear(x, W^T)``,
         ``W2 (W1 x + b1) + b2``      with ``(W2 W1) x + (W2 b1 + b2)`` where that is fewer products,
         ``(W x + b) + c``            with ``W x + (b + c)``, also where ``c`` is a term of a longer sum,
         ``s (W x + b)``              with ``(s W) x + s b``,
         ``W1 x + b1``, ``W2 x + b2`` with slices of ``[W1; W2] x + [b1; b2]`` where there are many and they are narrow,
         ``u + W x``                  with ``addmm(u, x, W^T)``, one product that starts from ``u``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

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
    shape_of,
    value_of,
)
from passes.linear_constants import weight_and_bias
from passes.serving_cost import BYTES_PER_US, PIECE_US, PRODUCTS_PER_US, products

RULE = "merge linears"
LEAST_BESIDE = 3
"""One product and one split are two operators."""


class MergeLinears(GraphPass):
    """Replaces Linears and the constants, scales, sums and Linears beside them with fewer operators."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = False
        for rule in (_as_linear, _scaled, _product, _shifted, _side_by_side):
            changed |= _everywhere(graph_module, rule)
        return PassResult(graph_module, changed)


class StartProducts(GraphPass):
    """Replaces a sum with a product by a product that starts from the other term."""

    def call(self, graph_module: GraphModule) -> PassResult:
        return PassResult(graph_module, _everywhere(graph_module, _accumulated))


Rule = Callable[[GraphModule, Node], "Node | None"]


def _everywhere(module: GraphModule, rule: Rule) -> bool:
    """Applies a rule to every node, in order; a rule returns what stands for the node from then on."""
    changed = False
    with torch.no_grad():
        for node in list(module.graph.nodes):
            if node.op != "call_function" or not (node.users or node.op == "output"):
                continue
            made = rule(module, node)
            if made is not None:
                node.replace_all_uses_with(made)
                module.graph.erase_node(node)
                changed = True
    if changed:
        finish(module)
    return changed


def _linear(  # noqa: PLR0917 - a Linear is its input and its constants
    module: GraphModule, like: Node, source: Any, weight: Tensor, bias: Tensor | None, name: str
) -> Node:
    new_weight = parameter(module, derived_name(name, "merged"), weight.contiguous(), rule=RULE)
    bias_name = derived_name(name, "merged", "bias")
    new_bias = None if bias is None else parameter(module, bias_name, bias.contiguous(), rule=RULE)
    with module.graph.inserting_before(like):
        arguments = (source, new_weight) if new_bias is None else (source, new_weight, new_bias)
        return call(module.graph, aten.linear.default, *arguments, rule=RULE, like=like)


def _as_linear(module: GraphModule, node: Node) -> Node | None:
    if node.target in (aten.matmul.default, aten.mm.default):
        source, weight_node = args_of(node)[:2]
    elif node.target is aten.tensordot.default and len(args_of(node)) == 4:
        source, weight_node = args_of(node)[:2]
        rank = len(shape_of(source) or ())
        if [axis % rank for axis in args_of(node)[2]] != [rank - 1] or list(args_of(node)[3]) not in ([0], [-2]):
            return None
    else:
        return None
    weight = constant_of(module, weight_node)
    shape = shape_of(source)
    if (
        weight is None
        or weight.dim() != 2
        or shape is None
        or len(shape) < 2
        or constant_of(module, source) is not None
    ):
        return None
    return _linear(module, node, source, weight.mT, None, str(weight_node.target))


def _scaled(module: GraphModule, node: Node) -> Node | None:
    """A Linear times a number."""
    if node.target is not aten.mul.Tensor or not isinstance(args_of(node)[1], (int, float)):
        return None
    inner = args_of(node)[0]
    constants = weight_and_bias(module, inner)
    if constants is None or len(inner.users) != 1 or value_of(inner).dtype != value_of(node).dtype:
        return None
    weight, bias = constants
    factor = args_of(node)[1]
    scaled = None if bias is None else bias * factor
    return _linear(module, node, args_of(inner)[0], weight * factor, scaled, str(args_of(inner)[1].target))


def _product(module: GraphModule, node: Node) -> Node | None:
    """A Linear of a Linear, where the product has no more entries than both."""
    outer, inner_node = weight_and_bias(module, node), args_of(node)[0] if args_of(node) else None
    inner = weight_and_bias(module, inner_node)
    if outer is None or inner is None or not isinstance(inner_node, Node) or len(inner_node.users) != 1:
        return None
    (weight2, bias2), (weight1, bias1) = outer, inner
    inputs, outputs = weight1.shape[1], weight2.shape[0]
    if inputs * outputs > weight1.numel() + weight2.numel():
        return None
    if products(inputs, outputs) > products(*weight1.shape[::-1]) + products(*weight2.shape[::-1]):
        return None
    weight = (weight2.double() @ weight1.double()).to(weight2.dtype)
    bias = None if bias1 is None else (weight2.double() @ bias1.double()).to(weight2.dtype)
    if bias2 is not None:
        bias = bias2 if bias is None else bias + bias2
    return _linear(module, node, args_of(inner_node)[0], weight, bias, str(args_of(node)[1].target))


def _shifted(module: GraphModule, node: Node) -> Node | None:
    """A constant term of a sum, into the bias of a Linear among the sum's terms."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    for constant_node, other in ((args_of(node)[1], args_of(node)[0]), (args_of(node)[0], args_of(node)[1])):
        constant = _row(module, constant_node)
        if constant is None or not isinstance(other, Node) or not same_form(node, other):
            continue
        linear = _linear_term(module, other, constant.numel())
        if linear is None:
            continue
        weight, bias = weight_and_bias(module, linear) or (None, None)
        if weight is None:
            continue
        added = constant.to(weight.dtype).expand(weight.shape[0])
        made = _linear(
            module,
            linear,
            args_of(linear)[0],
            weight,
            added if bias is None else bias + added,
            str(args_of(linear)[1].target),
        )
        alone = other is linear
        linear.replace_all_uses_with(made)
        return made if alone else other
    return None


def _row(module: GraphModule, node: object) -> Tensor | None:
    """A constant that is the same for every row, as [features] or [1]."""
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return torch.tensor([node], dtype=torch.float64)
    constant = constant_of(module, node)
    if constant is None or not constant.is_floating_point() or math.prod(constant.shape[:-1]) != 1:
        return None
    return constant.reshape(-1)


def _linear_term(module: GraphModule, node: Node, width: int) -> Node | None:
    """The first Linear that a sum adds up, where nothing but the sum uses it."""
    if len(node.users) != 1:
        return None
    constants = weight_and_bias(module, node)
    if constants is not None:
        return node if width in (1, constants[0].shape[0]) else None
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    for operand in args_of(node)[:2]:
        if isinstance(operand, Node) and same_form(operand, node):
            found = _linear_term(module, operand, width)
            if found is not None:
                return found
    return None


def _side_by_side(module: GraphModule, node: Node) -> Node | None:
    """Narrow Linears of one input: the first of them makes the product, each takes its slice."""
    constants = weight_and_bias(module, node)
    if constants is None or not isinstance(args_of(node)[0], Node):
        return None
    source = args_of(node)[0]
    order = {each: position for position, each in enumerate(module.graph.nodes)}
    alike = [user for user in source.users if args_of(user)[0] is source and weight_and_bias(module, user) is not None]
    alike.sort(key=lambda each: order[each])
    if len(alike) < 2 or alike[0] is not node or len(shape_of(node) or ()) != 2 or not _saves(module, alike):
        return None
    pairs = [weight_and_bias(module, each) for each in alike]
    weights = [pair[0] for pair in pairs if pair is not None]
    if len({weight.dtype for weight in weights}) != 1:
        return None
    weight = torch.cat(weights)
    bias = None
    if any(pair is not None and pair[1] is not None for pair in pairs):
        bias = torch.cat([weight.new_zeros(pair[0].shape[0]) if pair[1] is None else pair[1] for pair in pairs if pair])
    whole = _linear(module, node, source, weight, bias, str(args_of(node)[1].target))
    start = 0
    mine: Node = node
    for each, part in zip(alike, weights, strict=True):
        end = start + part.shape[0]
        with module.graph.inserting_before(each):
            piece = call(module.graph, aten.slice.Tensor, whole, 1, start, end, rule=RULE, like=each)
        start = end
        if each is node:
            mine = piece
        else:
            each.replace_all_uses_with(piece)
    return mine


def _saves(module: GraphModule, linears: list[Node]) -> bool:
    """Whether one product and its split cost less than the products, for one row and for many."""
    if len(linears) < LEAST_BESIDE:
        return False
    widths = [pair[0].shape for each in linears if (pair := weight_and_bias(module, each)) is not None]
    inputs = widths[0][1]
    outputs = [shape[0] for shape in widths]
    before = sum(products(inputs, width) for width in outputs) / PRODUCTS_PER_US
    sliced = sum(4 * width / BYTES_PER_US + PIECE_US for width in outputs)
    after = products(inputs, sum(outputs)) / PRODUCTS_PER_US + sliced
    return after <= before


def _accumulated(module: GraphModule, node: Node) -> Node | None:
    """A sum with a Linear that has no bias: the product starts from the other term."""
    if node.target is not aten.add.Tensor or node.kwargs or len(shape_of(node) or ()) != 2:
        return None
    for linear, other in ((args_of(node)[1], args_of(node)[0]), (args_of(node)[0], args_of(node)[1])):
        constants = weight_and_bias(module, linear)
        if constants is None or constants[1] is not None or len(linear.users) != 1 or not isinstance(other, Node):
            continue
        if constant_of(module, other) is not None or not (same_form(node, other) and same_form(node, linear)):
            continue
        weight = constants[0]
        name = derived_name(str(args_of(linear)[1].target), "transposed")
        transposed = parameter(module, name, weight.mT.contiguous(), rule=RULE)
        with module.graph.inserting_before(node):
            return call(module.graph, aten.addmm.default, other, args_of(linear)[0], transposed, rule=RULE, like=node)
    return None
