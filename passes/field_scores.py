"""Scores between fields whose decoders differ: the dot interaction of all pairs, attention between fields.

Replaces ``<A_i z_i + o_i, A'_j z'_j + o'_j>`` with ``[z_i; 1]^T M_ij [z'_j; 1]``. A dense row (the output of a bottom
MLP among the looked-up rows) is its own code: ``<d, A_j z_j + o_j> = (d^T [A_j, o_j]) [z_j; 1]``.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from passes.choice import Alternative
from passes.code_builder import CodeBuilder
from passes.code_products import RULE, CodeProducts, is_possible, rank_with_offsets
from passes.decoder_constants import DecoderConstants
from passes.graph_tools import aten, value_of
from passes.low_rank_value import Block, split_rows
from passes.scores import Side, Sides, score_alternative


def with_rows(builder: CodeBuilder, node: Node, side: Side, own: str) -> Side | None:
    """The side with the axis that only it has among its feature axes."""
    if own in side.rows or not own:
        return side
    if side.rows or not side.lead.endswith(own):
        return None
    value = builder.pull(side.value, 1, rule=RULE, like=node)
    return None if value is None else replace(side, value=value)


@dataclass(frozen=True)
class FieldScores:
    """Scores of two sides with a decoder for each row.

    Attributes:
        builder: makes the nodes.
        node: the node that computes the scores.
        sides: both sides, feature axes ``[*groups, rows, features]`` with the same groups (heads).
        output: the letters of the result.
    """

    builder: CodeBuilder
    node: Node
    sides: Sides
    output: str

    @property
    def is_possible(self) -> bool:
        """Whether every row is one block, and the axes are in an order that the rows can follow."""
        left, right = self.sides
        groups = left.rows[:-1]
        rows = [self._blocks(side) for side in self.sides]
        if not left.rows or not right.rows or groups != right.rows[:-1] or left.lead != right.lead:
            return False
        if not all(rows) or not all(is_possible(block) for row in rows for block in row):
            return False
        return not groups or not any(block.decoder.is_identity for row in rows for block in row)

    @staticmethod
    def _blocks(side: Side) -> list[Block]:
        """The block of every row, none where a row is not one block."""
        rows = split_rows(side.value.blocks, side.value.trailing[-1]) or []
        return [row[0] for row in rows] if all(len(row) == 1 for row in rows) else []

    def _split(self, side: Side) -> tuple[list[int], list[int]]:
        """Places of the dense rows, and of those written in codes."""
        blocks = self._blocks(side)
        dense = [place for place, block in enumerate(blocks) if block.decoder.is_identity]
        return dense, [place for place in range(len(blocks)) if place not in dense]

    def _coded(self, side: Side) -> list[Block]:
        blocks = self._blocks(side)
        return [blocks[place] for place in self._split(side)[1]]

    @property
    def _group_sizes(self) -> tuple[int, ...]:
        return self.sides[0].value.trailing[:-2]

    @property
    def _groups(self) -> str:
        """A small letter for each axis of groups; capital ones are this file's own."""
        return string.ascii_lowercase[: len(self._group_sizes)]

    @property
    def alternatives(self) -> list[Alternative]:
        """One part."""
        left, right = self.sides
        width = left.value.trailing[-1]
        (dense, coded), (other_dense, other_coded) = self._split(left), self._split(right)
        groups = math.prod(self._group_sizes)
        cost = len(dense) * len(other_dense) * width
        if other_coded:
            rank = rank_with_offsets(self.builder, self._coded(right))
            cost += len(dense) * len(other_coded) * (width + 1) * rank
            if coded:
                one = rank_with_offsets(self.builder, self._coded(left))
                cost += len(coded) * len(other_coded) // groups * (one + 1) * rank
        if coded and not self._is_symmetric:
            one = rank_with_offsets(self.builder, self._coded(left))
            cost += len(coded) * len(other_dense) * (width + 1) * one
        return [score_alternative(self.builder, self.node, self.sides, self.output, cost)]

    @property
    def _is_symmetric(self) -> bool:
        """Whether both sides are the same rows, so that one mixed quarter is the other's transpose."""
        left, right = (side.value for side in self.sides)
        return left.code is right.code and left.units is right.units and self._rows_key(0) == self._rows_key(1)

    def _rows_key(self, which: int) -> list[object]:
        blocks = self._blocks(self.sides[which])
        return [(block.columns, block.unit, block.decoder.key, block.decoder.offset_key) for block in blocks]

    def emit(self, on_codes: Sequence[bool], features: Callable[[Node], Node]) -> Node:  # noqa: ARG002 (one part)
        """The scores in four quarters, dense rows and rows of codes, put into the original order."""
        products = CodeProducts(self.builder, self.node)
        (dense, coded), (other_dense, other_coded) = self._split(self.sides[0]), self._split(self.sides[1])
        quarters: list[list[Node]] = []
        if dense:
            first = [self._dense_by_dense(products)] if other_dense else []
            quarters.append(first + ([self._dense_by_coded(products, 0)] if other_coded else []))
        if coded:
            first = []
            if other_dense:
                mixed = quarters[0][-1] if self._is_symmetric else self._dense_by_coded(products, 1)
                first = [products.emit(aten.transpose.int, mixed, -2, -1)]
            quarters.append(first + ([self._coded_by_coded(products)] if other_coded else []))
        rows = [self.builder.beside(row, rule=RULE, like=self.node) for row in quarters]
        whole = rows[0] if len(rows) == 1 else products.emit(aten.cat.default, rows, -2)
        whole = self._in_order(products, whole, -2, dense + coded)
        whole = self._in_order(products, whole, -1, other_dense + other_coded)
        return self._in_axes(products, whole)

    def _in_order(self, products: CodeProducts, scores: Node, axis: int, places: list[int]) -> Node:
        """Rows back in their places."""
        if places == sorted(places):
            return scores
        index = [places.index(place) for place in range(len(places))]
        order = self.builder.new_index(index, scores)
        return products.emit(aten.index_select.default, scores, axis, order)

    def _in_axes(self, products: CodeProducts, scores: Node) -> Node:
        """The scores with their axes in the order of the result."""
        left, right = self.sides
        have = f"{left.lead}{left.rows}{right.rows[-1]}"
        if have == self.output:
            return scores
        return products.emit(aten.permute.default, scores, [have.index(letter) for letter in self.output])

    def _dense_rows(self, products: CodeProducts, which: int) -> Node:
        """The dense rows of a side, [*lead, rows, features]."""
        side = self.sides[which]
        blocks = self._blocks(side)
        dense = [blocks[place] for place in self._split(side)[0]]
        columns = [column for block in dense for column in block.columns]
        picked = products.picked(side.value.code, columns)
        width = side.value.trailing[-1]
        return self.builder.view(picked, side.value.lead, self.node, len(dense), width, rule=RULE)

    def _dense_by_dense(self, products: CodeProducts) -> Node:
        left, right = self._dense_rows(products, 0), self._dense_rows(products, 1)
        return products.emit(aten.matmul.default, left, products.emit(aten.transpose.int, right, -2, -1))

    def _dense_by_coded(self, products: CodeProducts, which: int) -> Node:
        """Scores [*lead, dense rows of one side, coded rows of the other]."""
        other = self.sides[1 - which].value
        blocks = self._coded(self.sides[1 - which])
        decoders = products.decoders(other, blocks)
        mapped = products.emit(aten.einsum.default, "...DE,YES->...DYS", [self._dense_rows(products, which), decoders])
        codes = products.emit(aten.unsqueeze.default, products.augmented(other, blocks), -3)
        return products.emit(aten.sum.dim_IntList, products.emit(aten.mul.Tensor, mapped, codes), [-1])

    def _coded_by_coded(self, products: CodeProducts) -> Node:
        """Scores [*lead, *groups, coded rows, coded rows of the other side]."""
        (left, ones), (right, others) = ((side.value, self._coded(side)) for side in self.sides)
        constant = self._pair_constants(products, ones, others)
        code, other = (
            self._grouped(products.augmented(value, blocks), value.lead)
            for value, blocks in ((left, ones), (right, others))
        )
        mapped = products.emit(
            aten.einsum.default, f"...{self._groups}XR,{self._groups}XYRS->...{self._groups}XYS", [code, constant]
        )
        other = products.emit(aten.unsqueeze.default, other, -3)
        return products.emit(aten.sum.dim_IntList, products.emit(aten.mul.Tensor, mapped, other), [-1])

    def _grouped(self, node: Node, lead: Sequence[object]) -> Node:
        """Rows [*lead, groups x rows, ...] as [*lead, *groups, rows, ...]."""
        count, *rest = value_of(node).shape[len(lead) :]
        sizes = self._group_sizes
        return self.builder.view(node, lead, self.node, *sizes, count // math.prod(sizes), *rest, rule=RULE)

    def _pair_constants(self, products: CodeProducts, ones: list[Block], others: list[Block]) -> Node:
        """``M_ij = [A_i, o_i]^T [A'_j, o'_j]``, [*groups, rows, rows, r, r']."""
        left, right = (side.value for side in self.sides)
        with DecoderConstants(self.builder, left, self.node, RULE).at_start():
            one = self._grouped(products.decoders(left, ones), ())
            other = self._grouped(products.decoders(right, others), ())
            equation = f"{self._groups}XER,{self._groups}YES->{self._groups}XYRS"
            return products.emit(aten.einsum.default, equation, [one, other])
