"""Scores: all inner products between two sets of features, ``matmul(x, y^T)``, computed on codes.

Replaces ``<A_i z_i + o_i, A'_j z'_j + o'_j>`` for all ``i, j`` with a product of codes
(:mod:`passes.code_products`): of the codes themselves where one orthonormal decoder serves both sides, of codes mapped
by one constant where one decoder serves each side (here), and by a constant for every pair where decoders differ from
field to field (:mod:`passes.field_scores`).
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from passes.choice import Alternative, decoding_cost
from passes.code_builder import CodeBuilder
from passes.code_products import RULE, CodeProducts, is_orthogonal, is_possible, rank_with_offsets
from passes.deferred import Pair, View
from passes.graph_tools import aten, value_of
from passes.low_rank_value import LowRankValue, align

UNKNOWN_AXIS = 16
"""How long an axis of unknown size, other than the batch, is taken to be when costs are compared."""


@dataclass(frozen=True)
class Side:
    """One operand of a contraction.

    Attributes:
        sources: the nodes whose features have to be decoded for it, with their values.
        value: its value, the contracted feature axis last.
        labels: a letter for each axis of the value.
    """

    sources: tuple[tuple[Node, LowRankValue], ...]
    value: LowRankValue
    labels: str

    @property
    def lead(self) -> str:
        """Letters of the leading axes."""
        return self.labels[: len(self.value.lead)]

    @property
    def rows(self) -> str:
        """Letters of the feature axes without the contracted one."""
        return self.labels[len(self.value.lead) : -1]

    def size(self, letter: str) -> Any:
        """The size of an axis."""
        return self.value.shape[self.labels.index(letter)]


Sides = tuple[Side, Side]


def side_of(operand: Any, value: object, letters: str) -> Side | None:
    """An operand with a letter for each of its axes; None where it is not low-rank."""
    if isinstance(value, LowRankValue):
        return Side(((operand, value),), value, letters)
    if isinstance(value, View):
        order = [value.axes.index(axis) for axis in range(len(value.axes))]
        return Side(value.sources, value.value, "".join(letters[place] for place in order))
    return None


def matrix_letters(rank: int) -> tuple[str, str, str]:
    """The letters of ``matmul`` of two tensors with ``rank`` axes: left, right, result."""
    batch = string.ascii_letters[3 : 1 + rank]
    return f"{batch}ac", f"{batch}cb", f"{batch}ab"


def is_ordinary(left: Side, right: Side, output: str) -> bool:
    """Whether one axis is contracted, the last feature axis of both, and each side has at most one axis to itself."""
    inner, both = left.labels[-1], set(left.labels) | set(right.labels)
    alone = [set(left.labels) - set(right.labels), set(right.labels) - set(left.labels)]
    once = all(len(set(letters)) == len(letters) for letters in (left.labels, right.labels, output))
    return (
        once
        and inner == right.labels[-1]
        and set(output) == both - {inner}
        and max(map(len, alone)) <= 1
        and left.value.trailing[-1] == right.value.trailing[-1]
        and value_of(left.value.code).dtype == value_of(right.value.code).dtype
    )


def score_count(sides: Sides, output: str) -> int:
    """Number of scores per row of the batch (a shared axis of unknown size is taken for the batch)."""
    total = 1
    for letter in output:
        sizes = [side.size(letter) for side in sides if letter in side.labels]
        unknown = UNKNOWN_AXIS if len(sizes) == 1 else 1
        total *= max(size if isinstance(size, int) else unknown for size in sizes)
    return total


def score_alternative(builder: CodeBuilder, node: Node, sides: Sides, output: str, on_codes: int) -> Alternative:
    """The choice between scores on codes, at a cost, and on features."""
    decoding = {node: decoding_cost(builder, value) for side in sides for node, value in side.sources}
    return Alternative(node, on_codes, score_count(sides, output) * sides[0].value.trailing[-1], decoding)


@dataclass(frozen=True)
class LikeScores:
    """Scores of two sides with one decoder each.

    Attributes:
        builder: makes the nodes.
        node: the node that computes the scores.
        sides: both sides, contracted axis and nothing else among the feature axes.
        output: the letters of the result.
    """

    builder: CodeBuilder
    node: Node
    sides: Sides
    output: str

    @property
    def pairs(self) -> list[Pair]:
        """The inner products that every score consists of; none where that cannot be said on codes."""
        aligned = align(self.sides[0].value.blocks, self.sides[1].value.blocks) or []
        pairs = [Pair(left, right, 0) for left, right in aligned]
        if not all(is_possible(pair.left) and is_possible(pair.right) for pair in pairs):
            return []
        return pairs if _are_orthogonal(pairs) or len(pairs) == 1 else []

    @property
    def alternatives(self) -> list[Alternative]:
        """One part."""
        pairs, count = self.pairs, score_count(self.sides, self.output)
        if _are_orthogonal(pairs):
            on_codes = count * sum(self.builder.rank_of(pair.left.decoder) for pair in pairs)
        else:
            one, other = (rank_with_offsets(self.builder, [block]) for block in (pairs[0].left, pairs[0].right))
            lead = self.sides[0].value.lead[1:]
            rows = math.prod(size if isinstance(size, int) else UNKNOWN_AXIS for size in lead)
            on_codes = rows * one * other + count * other
        return [score_alternative(self.builder, self.node, self.sides, self.output, on_codes)]

    def emit(self, on_codes: Sequence[bool], features: Callable[[Node], Node]) -> Node:  # noqa: ARG002 (one part)
        """A product of the codes."""
        products, pairs = CodeProducts(self.builder, self.node), self.pairs
        left, right = self.sides[0].value, self.sides[1].value
        if not _are_orthogonal(pairs):
            return self._product(products, products.mapped(left, right, pairs[0]), products.row(right, pairs[0].right))
        codes = [
            products.picked(value.code, [column for block in blocks for column in block.columns])
            for value, blocks in ((left, [pair.left for pair in pairs]), (right, [pair.right for pair in pairs]))
        ]
        scores = self._product(products, *codes)
        constant = products.offset_products(left, [pairs])
        return scores if constant is None else products.emit(aten.add.Tensor, scores, constant)

    def _product(self, products: CodeProducts, left: Node, right: Node) -> Node:
        """The contraction of two nodes along their last axis."""
        letters = [f"{side.lead}{side.labels[-1]}" for side in self.sides]
        batch = self.output[:-2]
        plain = [f"{batch}{self.output[-2:-1]}{letters[0][-1]}", f"{batch}{self.output[-1:]}{letters[0][-1]}"]
        if letters == plain and len(self.output) >= 2 and len(letters[0]) >= 3:
            rank = len(letters[1])
            return products.emit(
                aten.matmul.default, left, products.emit(aten.transpose.int, right, rank - 2, rank - 1)
            )
        return products.emit(aten.einsum.default, f"{letters[0]},{letters[1]}->{self.output}", [left, right])


def _are_orthogonal(pairs: Sequence[Pair]) -> bool:
    return bool(pairs) and all(is_orthogonal(pair.left, pair.right) for pair in pairs)


def with_one_feature_axis(builder: CodeBuilder, node: Node, side: Side) -> Side | None:
    """The side with its field axes among the leading ones; None where their decoders differ."""
    value = builder.push(side.value, rule=RULE, like=node)
    return None if value is None else replace(side, value=value)
