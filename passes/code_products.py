"""QUADRATIC: inner products of features, computed on codes.

With orthonormal decoders and offsets orthogonal to them, ``<A z + o, A z' + o'> = <z, z'> + <o, o'>``. In general the
decoder gets its offsets as columns, ``y = [A, o, g] [z; 1; u]``, and two features' inner product is
``[z; 1; u]^T M [z'; 1; u']`` with the constant ``M = [A, o, g]^T [A', o', g']``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from passes.code_builder import CodeBuilder, width_of
from passes.decoder import Decoder
from passes.decoder_constants import DecoderConstants
from passes.deferred import Pair
from passes.graph_tools import aten, value_of
from passes.low_rank_value import Block, LowRankValue

RULE = "quadratic"


def is_orthogonal(left: Block, right: Block) -> bool:
    """Whether the inner product of two blocks is that of their codes, plus a constant."""
    one, other = left.decoder, right.decoder
    same = one.key == other.key and one.orthogonal and other.orthogonal
    return same and left.unit is None and right.unit is None


def is_possible(block: Block) -> bool:
    """Whether inner products of a block can be taken on its code: a dense feature has no constant of its own."""
    return not block.decoder.is_elementwise or block.decoder.is_plain


@dataclass(frozen=True)
class Augmentation:
    """The columns that follow the code: a 1 for offsets, a unit for gated ones."""

    one: bool
    unit: bool

    @property
    def width(self) -> int:
        """How many."""
        return self.one + self.unit


def augmentation(blocks: Sequence[Block]) -> Augmentation:
    """What the codes of some blocks have to be augmented by."""
    return Augmentation(
        one=any(block.decoder.offset is not None for block in blocks),
        unit=any(block.unit is not None for block in blocks),
    )


def rank_with_offsets(builder: CodeBuilder, blocks: Sequence[Block]) -> int:
    """Width of the augmented codes of some blocks, as many columns for each."""
    return max(builder.rank_of(block.decoder) for block in blocks) + augmentation(blocks).width


class CodeProducts:
    """Emits inner products on codes.

    Args:
        builder: makes the nodes.
        like: the node that they stand for.
    """

    def __init__(self, builder: CodeBuilder, like: Node) -> None:
        self.builder, self.like = builder, like

    def emit(self, target: object, *args: object) -> Node:
        """One node at the insertion point."""
        return self.builder.emit(target, *args, rule=RULE, like=self.like)  # type: ignore[arg-type]

    def pairs(self, left: LowRankValue, right: LowRankValue, pairs: Sequence[Pair], results: int) -> Node:
        """Sums of inner products [*lead, results], one for each result."""
        if all(is_orthogonal(pair.left, pair.right) for pair in pairs):
            return self._orthogonal_pairs(left, right, pairs)
        return self._general_pairs(left, right, pairs, results)

    def _orthogonal_pairs(self, left: LowRankValue, right: LowRankValue, pairs: Sequence[Pair]) -> Node:
        groups = [list(group) for _, group in itertools.groupby(pairs, key=lambda pair: pair.result)]
        columns = [[column for pair in group for column in pair.left.columns] for group in groups]
        others = [[column for pair in group for column in pair.right.columns] for group in groups]
        codes = self._rows(left, columns)
        same = left.code is right.code and columns == others
        product = self.emit(aten.mul.Tensor, codes, codes if same else self._rows(right, others))
        sums = self.emit(aten.sum.dim_IntList, product, [-1])
        constant = self.offset_products(left, groups)
        return sums if constant is None else self.emit(aten.add.Tensor, sums, constant)

    def offset_products(self, value: LowRankValue, groups: Sequence[Sequence[Pair]]) -> Node | None:
        """For each group of pairs the sum of ``<o, o'>``, [groups]; None where all are zero."""
        shifted = [[pair for pair in group if pair.shifts_both] for group in groups]
        if not any(shifted):
            return None
        key = ("offset products", *(tuple(map(_offset_keys, group)) for group in shifted))
        if key not in self.builder.shared:
            constants = DecoderConstants(self.builder, value, self.like, RULE)
            with constants.at_start():
                sums = [self._offset_product(constants, group) for group in shifted]
                self.builder.shared[key] = self.builder.beside(sums, rule=RULE, like=self.like)
        node: Node = self.builder.shared[key]
        return node

    def _offset_product(self, constants: DecoderConstants, pairs: Sequence[Pair]) -> Node:
        """The sum of ``<o, o'>``, [1]."""
        if not pairs:
            return constants.zeros(1)
        sides = [[pair.left.decoder for pair in pairs], [pair.right.decoder for pair in pairs]]
        joined = [
            self.builder.beside([constants.offset_or_zeros(each) for each in side], rule=RULE, like=self.like)
            for side in sides
        ]
        return self.emit(aten.sum.dim_IntList, self.emit(aten.mul.Tensor, *joined), [0], True)

    def _rows(self, value: LowRankValue, columns: Sequence[Sequence[int]]) -> Node:
        """Code columns [*lead, rows, longest], filled up with zeros."""
        longest = max(1, *(len(row) for row in columns))
        source, filler = value.code, width_of(value.code)
        if any(len(row) < longest for row in columns):
            source = self.builder.beside([source, self._filled(value, 0)], rule=RULE, like=self.like)
        flat = [column for row in columns for column in [*row, *[filler] * (longest - len(row))]]
        picked = self.picked(source, flat)
        return self.builder.view(picked, value.lead, self.like, len(columns), longest, rule=RULE)

    def picked(self, source: Node, columns: list[int]) -> Node:
        """Columns of the last axis; the source itself where they are all, in order."""
        if columns == list(range(width_of(source))):
            return source
        breaks = sum(after != before + 1 for before, after in itertools.pairwise(columns))
        if breaks < 4:  # a few slices beat a gather of single numbers
            return self.builder.pick(source, columns, rule=RULE, like=self.like)
        return self.emit(aten.index_select.default, source, -1, self.builder.new_index(columns, source))

    def _filled(self, value: LowRankValue, number: float) -> Node:
        """A column [*lead, 1] of one number."""
        column = self.builder.pick(value.code, [0], rule=RULE, like=self.like)
        return self.emit(aten.full_like.default, column, number)

    def augmented(self, value: LowRankValue, blocks: Sequence[Block]) -> Node:
        """The codes of some blocks with a 1 and their units behind them, [*lead, blocks, rank]."""
        extra = augmentation(blocks)
        rank = _longest(blocks)
        parts, width = [value.code], width_of(value.code)
        first_unit = width
        if extra.unit and value.units is not None:
            parts, width = [*parts, value.units], width + width_of(value.units)
        one = width
        if extra.one:
            parts, width = [*parts, self._filled(value, 1)], width + 1
        filler = width
        rows = []
        for block in blocks:
            row = [*block.columns, *[filler] * (rank - len(block.columns))]
            row += [one] if extra.one else []
            row += [filler if block.unit is None else first_unit + block.unit] if extra.unit else []
            rows.append(row)
        flat = [column for row in rows for column in row]
        if filler in flat:
            parts.append(self._filled(value, 0))
        picked = self.picked(self.builder.beside(parts, rule=RULE, like=self.like), flat)
        return self.builder.view(picked, value.lead, self.like, len(blocks), rank + extra.width, rule=RULE)

    def decoders(self, value: LowRankValue, blocks: Sequence[Block]) -> Node:
        """The decoders of some blocks with their offsets as columns, [blocks, width, rank], filled up with zeros."""
        extra, rank = augmentation(blocks), _longest(blocks)
        width = max(block.width for block in blocks)
        keys = [(block.decoder.key, block.decoder.offset_key, block.decoder.gated_key) for block in blocks]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        key = ("decoders", extra, rank, width, tuple(keys))
        if key not in self.builder.shared:
            constants = DecoderConstants(self.builder, value, self.like, RULE)
            with constants.at_start():
                distinct = [
                    self._decoder(constants, blocks[keys.index(each)].decoder, extra, (width, rank)) for each in places
                ]
                stacked = constants.stack(distinct, width, rank + extra.width)
                if list(places) != keys:
                    index = self.builder.new_index([places[each] for each in keys], stacked)
                    stacked = self.emit(aten.index_select.default, stacked, 0, index)
                self.builder.shared[key] = stacked
        node: Node = self.builder.shared[key]
        return node

    def _decoder(
        self, constants: DecoderConstants, decoder: Decoder, extra: Augmentation, size: tuple[int, int]
    ) -> Node:
        """``[A, o, g]`` of one decoder, [width, rank + extra]."""
        width, rank = size
        matrix = constants.matrix(decoder) if decoder.rank else constants.zeros(decoder.width, rank)
        if 0 < decoder.rank < rank:
            matrix = self.emit(aten.constant_pad_nd.default, matrix, [0, rank - decoder.rank])
        parts = [matrix]
        if extra.one:
            parts.append(self.builder.column(constants.offset_or_zeros(decoder), rule=RULE, like=self.like))
        if extra.unit:
            gated = constants.gated(decoder) if decoder.gated is not None else constants.zeros(decoder.width)
            parts.append(self.builder.column(gated, rule=RULE, like=self.like))
        whole = self.builder.beside(parts, rule=RULE, like=self.like)
        if decoder.width < width:
            whole = self.emit(aten.constant_pad_nd.default, whole, [0, 0, 0, width - decoder.width])
        return whole

    def _general_pairs(self, left: LowRankValue, right: LowRankValue, pairs: Sequence[Pair], results: int) -> Node:
        ones, others = [pair.left for pair in pairs], [pair.right for pair in pairs]
        products = self._products_of_decoders(left, right, pairs)
        mapped = self.emit(aten.einsum.default, "...pr,prs->...ps", [self.augmented(left, ones), products])
        product = self.emit(aten.mul.Tensor, mapped, self.augmented(right, others))
        return self.added(self.emit(aten.sum.dim_IntList, product, [-1]), [pair.result for pair in pairs], results)

    def _products_of_decoders(self, left: LowRankValue, right: LowRankValue, pairs: Sequence[Pair]) -> Node:
        """``M`` of each pair, [pairs, r, r']."""
        first, second = (
            self.decoders(left, [pair.left for pair in pairs]),
            self.decoders(right, [pair.right for pair in pairs]),
        )
        with DecoderConstants(self.builder, left, self.like, RULE).at_start():
            return self.emit(aten.bmm.default, self.emit(aten.transpose.int, first, 1, 2), second)

    def mapped(self, left: LowRankValue, right: LowRankValue, pair: Pair) -> Node:
        """The augmented code of one block times the pair's ``M``, [*lead, r']."""
        products = self._products_of_decoders(left, right, [pair])
        with DecoderConstants(self.builder, left, self.like, RULE).at_start():
            weight = self.emit(aten.transpose.int, self.emit(aten.select.int, products, 0, 0), 0, 1)
        return self.emit(aten.linear.default, self.row(left, pair.left), weight)

    def row(self, value: LowRankValue, block: Block) -> Node:
        """The augmented code of one block, [*lead, r]."""
        return self.emit(aten.select.int, self.augmented(value, [block]), -2, 0)

    def added(self, scores: Node, owners: list[int], results: int) -> Node:
        """Numbers [*lead, n] added up to [*lead, results], each to its owner."""
        each = len(owners) // max(results, 1)
        if owners == list(range(results)):
            return scores
        if results == 1:
            return self.emit(aten.sum.dim_IntList, scores, [-1], True)
        lead = tuple(value_of(scores).shape)[:-1]
        if owners == [result for result in range(results) for _ in range(each)]:
            grouped = self.builder.view(scores, lead, self.like, results, each, rule=RULE)
            return self.emit(aten.sum.dim_IntList, grouped, [-1])
        if owners == list(range(results)) * each:
            grouped = self.builder.view(scores, lead, self.like, each, results, rule=RULE)
            return self.emit(aten.sum.dim_IntList, grouped, [-2])
        members = torch.zeros(results, len(owners), dtype=value_of(scores).dtype)
        members[owners, torch.arange(len(owners))] = 1
        key = ("members", tuple(owners), results)
        return self.emit(aten.linear.default, scores, self.builder.new_buffer("members", members, key, scores))


def _longest(blocks: Sequence[Block]) -> int:
    """Code columns of the longest of some blocks, at least 1: constants have a zero in place of a code."""
    return max(1, *(block.decoder.rank for block in blocks))


def _offset_keys(pair: Pair) -> tuple[object, ...]:
    one, other = pair.left.decoder, pair.right.decoder
    return one.key, one.offset_key, other.key, other.offset_key
