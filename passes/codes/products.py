"""Products of features with features, and the inner products that one orthonormal decoder leaves to the codes.

Where both features have the same decoder, with orthonormal columns and an offset orthogonal to them,
``<A z + o, A z' + o'> = <z, z'> + <o, o'>``: a product of codes, which are shorter than the features. Where the columns
are orthonormal but for one more row ``w`` (the weight of the linear term, under one code with the embedding), its
products are taken off again: ``<A z + o, A z' + o'> = <z, z'> + <[o; p], [o'; p']> - (w z + p) (w z' + p')``.

With different decoders it takes a matrix for every pair, ``[z; 1]^T [A, o]^T [A', o'] [z'; 1]``. Those fewer
multiply-adds are no faster than decoding: 1.0 to 2.0 times its time for PNN's pairs, 1.2 to 2.3 for the dot interaction
of a DLRM (ONNX Runtime, one core, batches of 1 to 4096). So nothing is computed that way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from passes.codes.code_builder import CodeBuilder, width_of
from passes.codes.decoder import Decoder
from passes.codes.decoder_constants import DecoderConstants
from passes.codes.low_rank_value import Block, LowRankValue, align
from passes.graph import aten, value_of

Positions = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ProductTerm:
    """One elementwise product of two low-rank values.

    Attributes:
        left: the first operand's value; its feature axes are those of the product.
        right: the second operand's; the leading axes of both broadcast.
        results: for each feature of the product, the feature of the whole that it is added to.
        scale: a number that the product is multiplied by.
    """

    node: Node
    left: LowRankValue
    right: LowRankValue
    results: Positions
    scale: float = 1.0


@dataclass(frozen=True)
class Product:
    """A sum of elementwise products, summed over some of their features; the node that has it is computed as ever."""

    terms: tuple[ProductTerm, ...]
    lead: tuple[Any, ...]
    trailing: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """The factored sites inside."""
        sides = (side for term in self.terms for side in (term.left, term.right))
        return tuple(dict.fromkeys(site for side in sides for site in side.sites))

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


@dataclass(frozen=True)
class InnerProduct:
    """Two blocks, equally wide, whose inner product is added to one feature of the whole."""

    left: Block
    right: Block
    result: int

    @property
    def is_of_codes(self) -> bool:
        """Whether it is the inner product of the codes, plus a constant, less a product of one feature."""
        one, other = self.left, self.right
        orthogonal = all(_is_complete(each.decoder) for each in (one, other))
        return one.decoder.key == other.decoder.key and orthogonal and one.unit is None and other.unit is None


def _is_complete(decoder: Decoder) -> bool:
    """Whether the columns are orthonormal with one more feature at most."""
    return decoder.completion is not None and decoder.completion.width <= 1


def inner_products(term: ProductTerm, results: int) -> list[InnerProduct] | None:
    """The inner products that a term consists of, by result; None where it is not made of whole ones for all."""
    pairs, first = list[InnerProduct](), 0
    for left, right in align(term.left.blocks, term.right.blocks) or ():
        added_to = term.results[first : first + left.width].tolist()
        first += left.width
        if len(set(added_to)) == 1:
            pairs.append(InnerProduct(left, right, added_to[0]))
        elif left.decoder.is_identity and right.decoder.is_identity:
            pairs += [InnerProduct(left.take([k]), right.take([k]), result) for k, result in enumerate(added_to)]
        else:
            return None
    covers_all = {pair.result for pair in pairs} == set(range(results))
    return sorted(pairs, key=lambda pair: pair.result) if covers_all else None


def sums_of_codes(builder: CodeBuilder, term: ProductTerm, pairs: Sequence[InnerProduct]) -> Node:
    """Sums [*lead, results], one for each result."""
    groups = [list(group) for _, group in itertools.groupby(pairs, key=lambda pair: pair.result)]
    columns = [[column for pair in group for column in pair.left.columns] for group in groups]
    others = [[column for pair in group for column in pair.right.columns] for group in groups]
    codes = _rows(builder, term.left, columns)
    same = term.left.code is term.right.code and columns == others
    product = builder.emit(aten.mul.Tensor, codes, codes if same else _rows(builder, term.right, others))
    sums = builder.emit(aten.sum.dim_IntList, product, [-1])
    constant = _offset_products(builder, term.left, groups)
    if constant is not None:
        sums = builder.emit(aten.add.Tensor, sums, constant)
    left_out = _products_left_out(builder, term, groups)
    return sums if left_out is None else builder.emit(aten.sub.Tensor, sums, left_out)


def sums_of_features(builder: CodeBuilder, term: ProductTerm, results: int) -> Node:
    """The same of a term whose products are computed from features."""
    shape = tuple(value_of(term.node).shape)
    products = builder.features(term.node)
    lead = shape[: len(shape) - len(term.left.trailing)]
    return _added_up(builder, builder.view(products, lead, term.left.features), term.results.tolist(), results)


def _added_up(builder: CodeBuilder, numbers: Node, owners: Sequence[int], results: int) -> Node:
    """Numbers [*lead, n] added up to [*lead, results], each to the result that owns it."""
    if results == 1:
        return builder.emit(aten.sum.dim_IntList, numbers, [-1], True)
    return builder.emit(aten.linear.default, numbers, _members(builder, owners, results, numbers))


def _members(builder: CodeBuilder, owners: Sequence[int], results: int, like: Node) -> Node:
    """Which numbers belong to which result, [results, n] of ones and zeros."""
    members = torch.zeros(results, len(owners), dtype=value_of(like).dtype)
    members[list(owners), torch.arange(len(owners))] = 1
    return builder.new_buffer("members", members, ("members", tuple(owners), results), like)


def _products_left_out(
    builder: CodeBuilder, term: ProductTerm, groups: Sequence[Sequence[InnerProduct]]
) -> Node | None:
    """For each group the sum of the products of the features that the products of codes have too much."""
    pairs = [(pair, result) for result, group in enumerate(groups) for pair in group if _left_out(pair.left)]
    if not pairs:
        return None
    left = _features_left_out(builder, term.left, [pair.left for pair, _ in pairs])
    alike = all(pair.left.columns == pair.right.columns and pair.left.decodes_like(pair.right) for pair, _ in pairs)
    same = alike and term.left.code is term.right.code
    right = left if same else _features_left_out(builder, term.right, [pair.right for pair, _ in pairs])
    return _added_up(builder, builder.emit(aten.mul.Tensor, left, right), [each for _, each in pairs], len(groups))


def _left_out(block: Block) -> tuple[Decoder, ...]:
    """The decoder of the one feature that completes a block's columns, if they need one."""
    rest = block.decoder.completion
    return () if rest is None or not rest.width else (rest,)


def _features_left_out(builder: CodeBuilder, value: LowRankValue, blocks: Sequence[Block]) -> Node:
    """The feature that completes each of some blocks, [*lead, blocks]: one product for all of them."""
    constants = DecoderConstants(builder, value)
    decoders = [decoder for block in blocks for decoder in _left_out(block)]
    code = builder.pick(value.code, [column for block in blocks for column in block.columns])
    owners = [place for place, block in enumerate(blocks) for _ in block.columns]
    with constants.at_start():
        weights = builder.beside([constants.matrix(decoder) for decoder in decoders])
        weight = builder.emit(aten.mul.Tensor, _members(builder, owners, len(blocks), code), weights)
        shifted = any(decoder.offset is not None for decoder in decoders)
        offset = builder.beside([constants.offset_or_zeros(decoder) for decoder in decoders]) if shifted else None
    return builder.emit(aten.linear.default, code, weight, offset)


def _rows(builder: CodeBuilder, value: LowRankValue, columns: Sequence[Sequence[int]]) -> Node:
    """Code columns [*lead, rows, longest], filled up with zeros."""
    longest = max(1, *(len(row) for row in columns))
    source, filler = value.code, width_of(value.code)
    if any(len(row) < longest for row in columns):
        first = builder.pick(source, [0])
        zeros = builder.emit(aten.zeros_like.default, first)
        source = builder.beside([source, zeros])
    flat = [column for row in columns for column in [*row, *[filler] * (longest - len(row))]]
    picked = _picked(builder, source, flat)
    return builder.view(picked, value.lead, len(columns), longest)


def _picked(builder: CodeBuilder, source: Node, columns: list[int]) -> Node:
    """Columns of the last axis: a few slices beat a gather of single numbers."""
    breaks = sum(after != before + 1 for before, after in itertools.pairwise(columns))
    if breaks < 4:
        return builder.pick(source, columns)
    return builder.emit(aten.index_select.default, source, -1, builder.new_index(columns, source))


def _offset_products(
    builder: CodeBuilder, value: LowRankValue, groups: Sequence[Sequence[InnerProduct]]
) -> Node | None:
    """For each group the sum of ``<o, o'>``, [groups]; None where all are zero."""
    decoders = [
        [
            sides
            for pair in group
            for sides in [
                (pair.left.decoder, pair.right.decoder),
                *zip(_left_out(pair.left), _left_out(pair.right), strict=True),
            ]
        ]
        for group in groups
    ]
    shifted = [[pair for pair in group if all(one.offset is not None for one in pair)] for group in decoders]
    if not any(shifted):
        return None
    constants = DecoderConstants(builder, value)
    key = ("offset products", *(tuple((*a.constants, *b.constants) for a, b in group) for group in shifted))
    if key not in builder.shared:
        with constants.at_start():
            sums = [_offset_product(builder, constants, group) for group in shifted]
            builder.shared[key] = builder.beside(sums)
    node: Node = builder.shared[key]
    return node


def _offset_product(
    builder: CodeBuilder, constants: DecoderConstants, pairs: Sequence[tuple[Decoder, Decoder]]
) -> Node:
    """The sum of ``<o, o'>``, [1]."""
    if not pairs:
        return constants.zeros(1)
    joined = [builder.beside([constants.offset_or_zeros(each) for each in side]) for side in zip(*pairs, strict=True)]
    return builder.emit(aten.sum.dim_IntList, builder.emit(aten.mul.Tensor, *joined), [0], True)
