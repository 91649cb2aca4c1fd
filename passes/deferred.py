"""Deferred values: what the rewrite knows about a tensor without having decided how it is computed.

A node with a deferred value stays in the graph as it is. If an operator needs its features, the node's own operands
are restored and it computes them as ever; if not, it is dead in the end.

:class:`View` is a low-rank value whose feature axes do not come last. :class:`Product` is a sum of elementwise
products of low-rank values; once every sum runs over all features of a code it is a number that codes can give too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.fx import Node

from passes.low_rank_value import Block, LowRankValue, align

Positions = np.ndarray[Any, Any]


@dataclass(frozen=True)
class View:
    """A low-rank value seen with its axes in another order.

    Attributes:
        value: the value.
        axes: for each axis of the view, the value's axis.
        sources: the nodes whose features it is made of, with their values.
    """

    value: LowRankValue
    axes: tuple[int, ...]
    sources: tuple[tuple[Node, LowRankValue], ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The factored sites inside."""
        return self.value.sites


@dataclass(frozen=True)
class Factors:
    """One elementwise product of two low-rank values.

    Attributes:
        node: the node that multiplies.
        operands: the nodes whose features it multiplies.
        left: the first operand's value; its feature axes are those of the product.
        right: the second operand's; the leading axes of both broadcast.
        results: for each feature of the product, the feature of the whole that it is added to.
        scale: a number that the product is multiplied by.
    """

    node: Node
    operands: tuple[Node, Node]
    left: LowRankValue
    right: LowRankValue
    results: Positions
    scale: float = 1.0


@dataclass(frozen=True)
class Product:
    """A sum of elementwise products, summed over some of their features.

    Attributes:
        terms: the products.
        lead: leading axes.
        trailing: feature axes of the whole.
    """

    terms: tuple[Factors, ...]
    lead: tuple[Any, ...]
    trailing: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The factored sites inside."""
        return tuple(dict.fromkeys(site for term in self.terms for side in _sides(term) for site in side.sites))

    @property
    def shape(self) -> tuple[Any, ...]:
        """The logical shape."""
        return (*self.lead, *self.trailing)

    @property
    def count(self) -> int:
        """Number of features of the whole."""
        return math.prod(self.trailing)

    def scaled(self, number: float) -> Product:
        """The whole times a number."""
        return replace(self, terms=tuple(replace(term, scale=term.scale * number) for term in self.terms))

    def relabelled(self, targets: Positions, trailing: Sequence[int]) -> Product:
        """The whole whose feature k went to (was added to) feature ``targets[k]`` of the given axes."""
        flat = targets.reshape(-1)
        terms = tuple(replace(term, results=flat[term.results]) for term in self.terms)
        return replace(self, terms=terms, trailing=tuple(trailing))


def _sides(term: Factors) -> tuple[LowRankValue, LowRankValue]:
    return term.left, term.right


@dataclass(frozen=True)
class Pair:
    """Two blocks whose features are multiplied and summed up.

    Attributes:
        left: a block of the first operand.
        right: a block of the second, as wide.
        result: the feature of the whole that their inner product is added to.
    """

    left: Block
    right: Block
    result: int

    @property
    def shifts_both(self) -> bool:
        """Whether both blocks have an offset."""
        return self.left.decoder.offset is not None and self.right.decoder.offset is not None


def inner_products(term: Factors) -> list[Pair] | None:
    """The inner products that a term consists of; None where it is not made of whole ones."""
    pairs, first = [], 0
    aligned = align(term.left.blocks, term.right.blocks)
    for left, right in aligned or ():
        results = term.results[first : first + left.width].tolist()
        first += left.width
        if len(set(results)) == 1:
            pairs.append(Pair(left, right, results[0]))
            continue
        if not (left.decoder.is_identity and right.decoder.is_identity):
            return None
        pairs += [Pair(left.take([row]), right.take([row]), result) for row, result in enumerate(results)]
    return None if aligned is None else sorted(pairs, key=lambda pair: pair.result)
