"""Merges Linears: with one another, with constants and scales around them, and with the sum they are a term of.

Replaces ``matmul(x, W)``, ``tensordot(x, W, [-1], [0])``
                                      with ``linear(x, W^T)``,
         ``matmul(x, t(W))``          with ``linear(x, W)``,
         ``W2 (W1 x + b1) + b2``      with ``(W2 W1) x + (W2 b1 + b2)`` where that is fewer products,
         ``(W x + b) + c``            with ``W x + (b + c)``, also where ``c`` is a term of a longer sum,
         ``s (W x + b)``              with ``(s W) x + s b``, also for every term of a sum,
         ``u - (W x + b)``            with ``u + ((-W) x - b)``,
         ``u + (W x + W2 y)``         with ``(u + W x) + W2 y``,
         ``(W x + b) + (W2 y + b2)``  with ``(W x + (b + b2)) + W2 y``,
         ``u + W x``                  with ``addmm(u, x, W^T)``, one product that starts from ``u``.

A weight that anything else reads (the table of a tied output layer) stays as it is: another constant made of it would
be kept beside it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph import (
    GraphPass,
    WeightedCall,
    args_of,
    aten,
    call,
    constant_of,
    derived_name,
    emit_linear,
    is_call,
    is_read_by,
    parameter,
    rank_of,
    replace_node,
    rewrite_each,
    same_form,
    weighted_call,
)
from passes.serving.serving_cost import products

RULE = "merge linears"


class MergeLinears(GraphPass):
    """Replaces Linears and the constants, scales and sums beside them with fewer operators."""

    after = ("FoldBatchNorm",)
    """A batch-norm between two Linears keeps them apart."""

    def rewrite(self, graph_module: GraphModule) -> None:
        for rule in (_of_transposed, _as_linear, _scaled, _subtracted, _in_a_row, _product, _shifted, _with_one_bias):
            rewrite_each(graph_module, rule)


class StartProducts(GraphPass):
    """Replaces a sum with a product by a product that starts from the other term."""

    after = ("MergeLinears", "SumsAsProducts", "CollapseMoves")
    """It makes products of Linears that no other pass can read any more."""

    def rewrite(self, graph_module: GraphModule) -> None:
        rewrite_each(graph_module, _accumulated)


def _linear_call(module: GraphModule, node: object) -> WeightedCall | None:
    return weighted_call(module, node, aten.linear.default)


def _merged(  # noqa: PLR0917 - a Linear is its input and its constants
    module: GraphModule, like: Node, source: Node, weight: Tensor | Node, bias: Tensor | None, name: str
) -> Node:
    with module.graph.inserting_before(like):
        return emit_linear(module, source, weight, bias, name, "merged", rule=RULE, like=like)


def _as_linear(module: GraphModule, node: Node) -> Node | None:
    product = weighted_call(module, node, aten.matmul.default, aten.mm.default)
    if product is not None and (rank_of(product.source) or 0) > 1 and product.is_only_reader:
        return _merged(module, node, product.source, product.weight, None, product.name)
    if not is_call(node, aten.tensordot.default) or len(node.args) != 4:
        return None
    source, weight_node, axes, others = args_of(node)
    weight, rank = constant_of(module, weight_node), rank_of(source) or 0
    if weight is None or weight.dim() != 2 or rank < 2 or constant_of(module, source) is not None:
        return None
    if [axis % rank for axis in axes] != [rank - 1] or list(others) not in ([0], [-2]):
        return None
    if not is_read_by(weight_node, {node}):
        return None
    return _merged(module, node, source, weight.mT, None, str(weight_node.target))


def _of_transposed(module: GraphModule, node: Node) -> Node | None:
    """A product with a transposed constant, as a Linear with the constant."""
    if not is_call(node, aten.matmul.default, aten.mm.default):
        return None
    source, weight = node.args[0], _transposed(module, node.args[1])
    if weight is None or (rank_of(source) or 0) < 2 or constant_of(module, source) is not None:
        return None
    return call(module.graph, aten.linear.default, source, weight, rule=RULE, like=node)


def _transposed(module: GraphModule, node: object) -> Node | None:
    """The constant matrix that a node is the transpose of."""
    if is_call(node, aten.transpose.int):
        swaps = {axis % 2 for axis in args_of(node)[1:]} == {0, 1}
    elif is_call(node, aten.permute.default):
        swaps = [axis % 2 for axis in args_of(node)[1]] == [1, 0]
    else:
        swaps = is_call(node, aten.t.default)
    if not swaps or not isinstance(node, Node):
        return None
    source = args_of(node)[0]
    constant = constant_of(module, source)
    return source if constant is not None and constant.dim() == 2 else None


def _scaled(module: GraphModule, node: Node) -> Node | None:
    """A Linear, or a sum of Linears, times a number."""
    if not is_call(node, aten.mul.Tensor) or not isinstance(node.args[1], (int, float)):
        return None
    total, factor = args_of(node)
    return _times(module, total, factor) if _is_sum_of_linears(module, total, node) else None


def _subtracted(module: GraphModule, node: Node) -> Node | None:
    """A difference of which the Linears of the second term are subtracted."""
    if not is_call(node, aten.sub.Tensor) or not all(isinstance(term, Node) for term in node.args):
        return None
    first, second = args_of(node)
    if not same_form(first, node) or not _is_sum_of_linears(module, second, node):
        return None
    return call(module.graph, aten.add.Tensor, first, _times(module, second, -1.0), rule=RULE, like=node)


def _in_a_row(module: GraphModule, node: Node) -> Node | None:
    """A sum with a sum of Linears, as one sum after the other."""
    if not is_call(node, aten.add.Tensor):
        return None
    for first, second in (node.args, node.args[::-1]):
        if is_call(second, aten.add.Tensor) and isinstance(first, Node) and same_form(first, node):
            if not _is_sum_of_linears(module, second, node) or _linear_call(module, first) is not None:
                continue
            made = call(module.graph, aten.add.Tensor, first, second.args[0], rule=RULE, like=second)
            return call(module.graph, aten.add.Tensor, made, second.args[1], rule=RULE, like=node)
    return None


def _is_sum_of_linears(module: GraphModule, node: object, like: Node) -> bool:
    """Whether a node that nothing else reads is a Linear of a node's form, or a sum or difference of such."""
    if not isinstance(node, Node) or len(node.users) != 1 or not same_form(node, like):
        return False
    if is_call(node, aten.add.Tensor, aten.sub.Tensor):
        return all(_is_sum_of_linears(module, term, like) for term in node.args)
    linear = _linear_call(module, node)
    return linear is not None and linear.is_only_reader


def _times(module: GraphModule, node: Node, factor: float) -> Node:
    """A sum of Linears times a number, at the graph's insertion point."""
    inner = _linear_call(module, node)
    if inner is None:
        first, second = (_times(module, term, factor) for term in args_of(node))
        return call(module.graph, node.target, first, second, rule=RULE, like=node)  # type: ignore[arg-type]
    bias = None if inner.bias is None else inner.bias * factor
    return emit_linear(module, inner.source, inner.weight * factor, bias, inner.name, "merged", rule=RULE, like=node)


def _product(module: GraphModule, node: Node) -> Node | None:
    """A Linear of a Linear, where the product has no more entries than what goes for it."""
    outer = _linear_call(module, node)
    inner = None if outer is None else _linear_call(module, outer.source)
    if outer is None or inner is None or len(inner.node.users) != 1:
        return None
    inputs, outputs = inner.weight.shape[1], outer.weight.shape[0]
    if inputs * outputs > sum(each.weight.numel() for each in (inner, outer) if each.is_only_reader):
        return None
    if products(inputs, outputs) > products(*inner.weight.shape[::-1]) + products(*outer.weight.shape[::-1]):
        return None
    weight, dtype = outer.weight.double(), outer.weight.dtype
    bias = None if inner.bias is None else (weight @ inner.bias.double()).to(dtype)
    if outer.bias is not None:
        bias = outer.bias if bias is None else bias + outer.bias
    return _merged(module, node, inner.source, (weight @ inner.weight.double()).to(dtype), bias, outer.name)


def _shifted(module: GraphModule, node: Node) -> Node | None:
    """A constant term of a sum, into the bias of a Linear among the sum's terms."""
    if not is_call(node, aten.add.Tensor):
        return None
    for given, term in (node.args[::-1], node.args):
        constant = _row(module, given)
        if constant is None or not isinstance(term, Node) or not same_form(node, term):
            continue
        linear = _linear_term(module, term, constant.numel())
        if linear is None:
            continue
        bias = constant.to(linear.weight.dtype).expand(linear.weight.shape[0])
        bias = bias if linear.bias is None else linear.bias + bias
        made = _merged(module, linear.node, linear.source, linear.weight_node, bias, linear.name)
        if term is linear.node:
            return made
        replace_node(linear.node, made)
        return term
    return None


def _with_one_bias(module: GraphModule, node: Node) -> Node | None:
    """A sum with a Linear whose bias another Linear of the sum can take."""
    if not is_call(node, aten.add.Tensor):
        return None
    for given, term in (node.args, node.args[::-1]):
        linear = _linear_call(module, given)
        if linear is None or linear.bias is None or len(linear.node.users) != 1 or not isinstance(term, Node):
            continue
        width, alike = linear.weight.shape[0], same_form(linear.node, term)
        other = _linear_term(module, term, width, with_bias=True) if alike else None
        if other is None or other.bias is None:
            continue
        bias = other.bias + linear.bias.to(other.bias.dtype)
        replace_node(other.node, _merged(module, other.node, other.source, other.weight_node, bias, other.name))
        replace_node(linear.node, _merged(module, linear.node, linear.source, linear.weight_node, None, linear.name))
    return None


def _row(module: GraphModule, node: object) -> Tensor | None:
    """A constant that is the same for every row, as [features] or [1]."""
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return torch.tensor([node], dtype=torch.float64)
    constant = constant_of(module, node)
    if constant is None or not constant.is_floating_point() or math.prod(constant.shape[:-1]) != 1:
        return None
    return constant.reshape(-1)


def _linear_term(module: GraphModule, node: Node, width: int, *, with_bias: bool = False) -> WeightedCall | None:
    """The first Linear (with a bias) that a sum adds up, where nothing but the sum uses it."""
    if len(node.users) != 1:
        return None
    linear = _linear_call(module, node)
    if linear is not None:
        fits = width in (1, linear.weight.shape[0]) and (linear.bias is not None or not with_bias)
        return linear if fits else None
    if not is_call(node, aten.add.Tensor):
        return None
    terms = [operand for operand in node.args if isinstance(operand, Node) and same_form(operand, node)]
    found = (_linear_term(module, term, width, with_bias=with_bias) for term in terms)
    return next((linear for linear in found if linear is not None), None)


def _accumulated(module: GraphModule, node: Node) -> Node | None:
    """A sum with a Linear that has no bias: the product starts from the other term."""
    if not is_call(node, aten.add.Tensor) or rank_of(node) != 2:
        return None
    for given, term in (node.args[::-1], node.args):
        linear = _linear_call(module, given)
        if linear is None or linear.bias is not None or len(linear.node.users) != 1 or not isinstance(term, Node):
            continue
        if not linear.is_only_reader:
            continue
        if constant_of(module, term) is not None or not (same_form(node, term) and same_form(node, linear.node)):
            continue
        name = derived_name(linear.name, "transposed")
        transposed = parameter(module, name, linear.weight.mT.contiguous(), rule=RULE)
        return call(module.graph, aten.addmm.default, term, linear.source, transposed, rule=RULE, like=node)
    return None
