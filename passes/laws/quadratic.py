"""QUADRATIC: products of features with features that are summed over all features of a code.

Replaces ``sum_k (A z + o)_k (A z' + o')_k`` with ``<z, z'> + <o, o'>`` where both sides have one orthonormal decoder
(:mod:`passes.codes.products` says why only there). Nothing is replaced where the products are multiplied: they are
carried along as a :class:`passes.codes.products.Product` through sums, differences, numbers and views, until every sum
is whole (FM's ``(sum_f e_f)^2 - sum_f e_f^2`` is one only after the last sum) or an operator needs the products one by
one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from passes.codes import (
    CodeBuilder,
    LowRankValue,
    Product,
    ProductTerm,
    inner_products,
    sums_of_codes,
    sums_of_features,
)
from passes.graph import argument, aten, value_of
from passes.laws.moves import equal_sizes, keeps_axes, on_features, reduced_axes, static
from passes.laws.need_features import BENDS, MULTIPLIES
from passes.laws.outcomes import Carried, Law, Outcome, Restored, Rule, Summed, Values

NEEDS_PRODUCTS = Restored(MULTIPLIES, Law.INTERACTION)


def multiply(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``mul`` of two low-rank values."""
    return _product(builder, node, values, (node.args[0], node.args[1]))


def power(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``pow(x, 2)`` of a low-rank value."""
    exponent = argument(node, 1, 2)
    if not isinstance(exponent, (int, float)) or exponent != 2:
        return Restored(BENDS, Law.NONLINEAR)
    return _product(builder, node, values, (node.args[0], node.args[0]))


def _product(builder: CodeBuilder, node: Node, values: Values, operands: tuple[Any, Any]) -> Outcome:
    left, right = values.get(operands[0]), values.get(operands[1])
    if not isinstance(left, LowRankValue) or not isinstance(right, LowRankValue):
        return NEEDS_PRODUCTS
    if any(value_of(side.code).dtype != value_of(node).dtype for side in (left, right)):
        return NEEDS_PRODUCTS
    sides = _with_equal_features(builder, node, left, right)
    if sides is None:
        return NEEDS_PRODUCTS
    left, right = sides
    shape = tuple(value_of(node).shape)
    term = ProductTerm(node, left, right, np.arange(left.features))
    return Carried(Product((term,), shape[: len(shape) - len(left.trailing)], left.trailing))


def _with_equal_features(
    builder: CodeBuilder, node: Node, left: LowRankValue, right: LowRankValue
) -> tuple[LowRankValue, LowRankValue] | None:
    """Both values with the feature axes of their elementwise result; leading axes are left to broadcast."""
    shape = tuple(value_of(node).shape)
    trailing = shape[len(shape) - max(len(left.trailing), len(right.trailing)) :]
    if not static(trailing):
        return None
    sides = []
    for value in (left, right):
        beyond = min(len(trailing) - len(value.trailing), len(value.lead))
        pulled = builder.pull(value, beyond)
        moved = pulled and on_features(pulled, lambda positions: np.broadcast_to(positions, trailing))
        if not isinstance(moved, LowRankValue):
            return None
        sides.append(moved)
    return sides[0], sides[1]


def settled(builder: CodeBuilder, node: Node, product: Product) -> Outcome:
    """A product carried on, or computed where it is whole and some of it are inner products of codes."""
    whole = [inner_products(term, product.count) for term in product.terms]
    of_codes = [pairs is not None and all(pair.is_of_codes for pair in pairs) for pairs in whole]
    if any(pairs is None for pairs in whole) or not any(of_codes):
        return Carried(product)
    total: Node | None = None
    for term, pairs, flag in zip(product.terms, whole, of_codes, strict=True):
        part = sums_of_codes(builder, term, pairs or []) if flag else sums_of_features(builder, term, product.count)
        if term.scale not in (1.0, -1.0) or (total is None and term.scale == -1):
            part = builder.emit(aten.mul.Tensor, part, term.scale)
        if total is None:
            total = part
        else:
            join = aten.sub.Tensor if term.scale == -1 else aten.add.Tensor
            total = builder.emit(join, total, part)
    if total is None:
        raise AssertionError  # unreachable: a product has terms
    result = builder.view(total, product.lead, *product.trailing)
    return Summed(result, tuple(term.node for term, flag in zip(product.terms, of_codes, strict=True) if flag))


def _only(node: Node, values: Values) -> Product | None:
    """The product that a node with one operand takes."""
    value = values.get(node.args[0]) if isinstance(node.args[0], Node) else None
    return value if isinstance(value, Product) else None


def reduce(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``sum``, ``mean`` of products over feature axes."""
    product = _only(node, values)
    if product is None or node.kwargs.get("dtype") is not None:
        return NEEDS_PRODUCTS
    axes, keep = reduced_axes(node, len(product.shape)), keeps_axes(node)
    product = _pulled(builder, product, len(product.lead) - axes[0])
    if product is None:
        return NEEDS_PRODUCTS
    lead, shape = len(product.lead), product.trailing
    ones = tuple(1 if axis + lead in axes else size for axis, size in enumerate(shape))
    targets = np.broadcast_to(np.arange(math.prod(ones)).reshape(ones), shape)
    kept = ones if keep else tuple(size for axis, size in enumerate(shape) if axis + lead not in axes)
    summed = product.relabelled(targets, kept)
    mean = node.target in (aten.mean.dim, aten.mean.default)
    return settled(builder, node, summed.scaled(summed.count / product.count) if mean else summed)


def _pulled(builder: CodeBuilder, product: Product, axes: int) -> Product | None:
    """The product with its last leading axes among the feature axes; None where a side lacks them."""
    if axes <= 0:
        return product
    sizes, terms = product.lead[-axes:], []
    for term in product.terms:
        if not all(equal_sizes(side.lead[-axes:], sizes) for side in (term.left, term.right)):
            return None
        left, right = (builder.pull(side, axes) for side in (term.left, term.right))
        if left is None or right is None:
            return None
        turns = np.arange(math.prod(sizes))[:, None] * product.count
        terms.append(replace(term, left=left, right=right, results=(turns + term.results).reshape(-1)))
    return Product(tuple(terms), product.lead[:-axes], (*sizes, *product.trailing))


def scale(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``mul``, ``div`` of products by a number, and ``neg``."""
    product = next(value for operand in node.all_input_nodes if isinstance(value := values.get(operand), Product))
    number = -1.0 if node.target is aten.neg.default else next((a for a in node.args if not isinstance(a, Node)), None)
    if not isinstance(number, (int, float)) or (node.target is aten.div.Tensor and not isinstance(node.args[0], Node)):
        return NEEDS_PRODUCTS
    return settled(builder, node, product.scaled(1.0 / number if node.target is aten.div.Tensor else float(number)))


def add(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``add``, ``sub`` of products."""
    one, other = (values.get(operand) if isinstance(operand, Node) else None for operand in node.args[:2])
    if not isinstance(one, Product) or not isinstance(other, Product) or not equal_sizes(one.shape, other.shape):
        return NEEDS_PRODUCTS
    lead = min(len(one.lead), len(other.lead))
    one, other = (_pulled(builder, each, len(each.lead) - lead) for each in (one, other))
    if one is None or other is None:
        return NEEDS_PRODUCTS
    factor = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    added = other.scaled(-factor if node.target is aten.sub.Tensor else factor)
    return settled(builder, node, replace(one, terms=(*one.terms, *added.terms)))


def reshape(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``view``, ``squeeze``, ``unsqueeze`` of products that leave the leading axes alone."""
    product, shape = _only(node, values), tuple(value_of(node).shape)
    lead = () if product is None else product.lead
    tail = shape[len(lead) :]
    if product is None or not equal_sizes(shape[: len(lead)], lead) or not static(tail):
        return NEEDS_PRODUCTS
    if not tail or math.prod(tail) != product.count:
        return NEEDS_PRODUCTS
    return settled(builder, node, replace(product, trailing=tail))


LAWS: dict[Any, Rule] = {aten.pow.Tensor_Scalar: power, aten.square.default: power}

LAWS_OF_PRODUCTS: dict[Any, Rule] = {
    **dict.fromkeys((aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default), reduce),
    **dict.fromkeys((aten.mul.Tensor, aten.div.Tensor, aten.neg.default), scale),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), add),
    **dict.fromkeys(
        (
            aten.view.default, aten.reshape.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
            aten.unsqueeze.default,
        ),
        reshape,
    ),
}  # fmt: skip
"""Rules for products of features that are not summed up yet."""
