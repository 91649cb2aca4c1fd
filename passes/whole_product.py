"""Sums of whole inner products, each computed on codes or on features.

FM's half is the case in point: ``sum_f |e_f|^2`` is a square of all codes, while ``|sum_f e_f|^2`` needs the sum of
the features, which is shorter than all codes side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node

from passes.choice import Alternative, decoding_cost
from passes.code_builder import CodeBuilder, positions_of
from passes.code_products import RULE, CodeProducts, is_orthogonal, rank_with_offsets
from passes.deferred import Factors, Pair, Product, inner_products
from passes.graph_tools import aten, value_of


@dataclass(frozen=True)
class WholeProduct:
    """Both ways to compute a product whose sums are whole.

    Attributes:
        builder: makes the nodes.
        node: the node that computes the sums.
        product: what is computed.
    """

    builder: CodeBuilder
    node: Node
    product: Product

    @property
    def alternatives(self) -> list[Alternative]:
        """One part per term."""
        return [self._alternative(term) for term in self.product.terms]

    def _alternative(self, term: Factors) -> Alternative:
        positions = max(positions_of(term.left), positions_of(term.right))
        sides = dict(zip(term.operands, (term.left, term.right), strict=True))
        decoding = {node: decoding_cost(self.builder, side) for node, side in sides.items()}
        on_codes = positions * _cost(self.builder, _pairs(term))
        return Alternative(term.node, on_codes, positions * term.left.features, decoding)

    def emit(self, on_codes: Sequence[bool], features: Callable[[Node], Node]) -> Node:
        """The sum of all terms, in the node's shape."""
        builder, node = self.builder, self.node
        total: Node | None = None
        for term, flag in zip(self.product.terms, on_codes, strict=True):
            if flag:
                part = CodeProducts(builder, node).pairs(term.left, term.right, _pairs(term), self.product.count)
            else:
                part = _of_features(builder, node, term, self.product, features)
            if term.scale not in (1.0, -1.0) or (total is None and term.scale == -1):
                part = builder.emit(aten.mul.Tensor, part, term.scale, rule=RULE, like=node)
            elif total is not None:
                join = aten.add.Tensor if term.scale == 1 else aten.sub.Tensor
                total = builder.emit(join, total, part, rule=RULE, like=node)
                continue
            total = part if total is None else builder.emit(aten.add.Tensor, total, part, rule=RULE, like=node)
        if total is None:
            raise AssertionError  # unreachable: a product has terms
        return builder.view(total, self.product.lead, node, *self.product.trailing, rule=RULE)


def _pairs(term: Factors) -> list[Pair]:
    return inner_products(term) or []


def _cost(builder: CodeBuilder, pairs: Sequence[Pair]) -> int:
    """Multiply-adds of a term on codes, for one position."""
    if all(is_orthogonal(pair.left, pair.right) for pair in pairs):
        return sum(builder.rank_of(pair.left.decoder) for pair in pairs)
    one = rank_with_offsets(builder, [pair.left for pair in pairs])
    other = rank_with_offsets(builder, [pair.right for pair in pairs])
    return len(pairs) * (one * other + other)


def _of_features(
    builder: CodeBuilder, node: Node, term: Factors, product: Product, features: Callable[[Node], Node]
) -> Node:
    """The term from decoded features, [*lead, results]."""
    multiplied = builder.emit(aten.mul.Tensor, *(features(each) for each in term.operands), rule=RULE, like=node)
    shape = tuple(value_of(term.node).shape)
    lead = shape[: len(shape) - len(term.left.trailing)]
    flat = builder.view(multiplied, lead, node, term.left.features, rule=RULE)
    return CodeProducts(builder, node).added(flat, term.results.tolist(), product.count)
