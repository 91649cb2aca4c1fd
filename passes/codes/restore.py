"""Restore: decodes a low-rank value where an operator needs the features themselves.

Replaces a code ``z`` with ``A_i z_i + o_i + g_i u_i`` for every block, in the value's logical shape. Blocks of one size
are decoded together, and a block that stands in several places is decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from passes.codes.code_builder import CodeBuilder
from passes.codes.decoder import Decoder
from passes.codes.decoder_constants import DecoderConstants
from passes.codes.low_rank_value import Block, LowRankValue
from passes.graph import aten

RULE = "restore"


def restore(builder: CodeBuilder, value: LowRankValue, node: Node) -> Node:
    """The features of the value of a node."""
    with builder.standing_for(node, RULE):
        decoded = _repeated(builder, value)
        return decoded if decoded is not None else _Restore(builder, value).run()


def _repeated(builder: CodeBuilder, value: LowRankValue) -> Node | None:
    """Decodes blocks of one width that stand in several places once each, then copies; None where none does."""
    places: dict[object, int] = {}
    index = [places.setdefault(_identity(block), len(places)) for block in value.blocks]
    widths = {block.width for block in value.blocks}
    if len(places) == len(index) or len(widths) > 1:
        return None
    width = widths.pop()
    firsts = tuple(value.blocks[index.index(place)] for place in range(len(places)))
    once = _Restore(builder, replace(value, blocks=firsts, trailing=(len(firsts), width))).run()
    order = builder.new_index(index, once)
    copied = builder.emit(aten.index_select.default, once, len(value.lead), order)
    return builder.view(copied, value.lead, *value.trailing)


def _identity(block: Block) -> object:
    return block.columns, block.unit, block.decoder.key, block.decoder.offset_key


class _Restore:
    """One restore."""

    def __init__(self, builder: CodeBuilder, value: LowRankValue) -> None:
        self.builder, self.value = builder, value
        self.constants = DecoderConstants(builder, value)

    def run(self) -> Node:
        parts = [self._part(run) for run in _alike(self.value.blocks)]
        whole = self.builder.beside(parts)
        return self._view(whole, *self.value.trailing)

    def _part(self, run: Sequence[Block]) -> Node:
        """Decodes a run of blocks of equal sizes to [*lead, features]."""
        columns = [column for block in run for column in block.columns]
        code = self.builder.pick(self.value.code, columns)
        features = sum(block.width for block in run)
        decoders = [block.decoder for block in run]
        first = decoders[0]
        if not columns:
            decoded = self._constant(code, decoders, features)
        elif len(run) == 1 or first.is_elementwise:
            decoded = self._decode_one(code, first, run)
        else:
            rows = self._view(code, len(run), first.rank)
            if all(decoder.same_constants(first) for decoder in decoders):
                decoded = self._decode_one(rows, first, run[:1])
            else:
                matrices = [self.constants.matrix(decoder) for decoder in decoders]
                stacked = self.constants.stack(matrices, first.width, first.rank)
                decoded = self.builder.emit(aten.einsum.default, "...kr,knr->...kn", [rows, stacked])
                decoded = self._plus_offsets(decoded, decoders)
            decoded = self._view(decoded, features)
        return self._plus_gated(decoded, run)

    def _constant(self, zeros: Node, decoders: Sequence[Decoder], features: int) -> Node:
        """Features without a code: their offsets, or zeros."""
        if all(decoder.offset is None for decoder in decoders):
            return self.builder.emit(aten.expand.default, zeros, [*(-1 for _ in self.value.lead), features])
        offsets = self.constants.stack([self.constants.offset_or_zeros(each) for each in decoders], decoders[0].width)
        with self.constants.at_start():
            offsets = self.builder.emit(aten.reshape.default, offsets, [features])
        return self.builder.emit(aten.add.Tensor, zeros, offsets)

    def _decode_one(self, code: Node, decoder: Decoder, run: Sequence[Block]) -> Node:
        if not decoder.is_elementwise:
            return self.builder.emit(
                aten.linear.default, code, self.constants.matrix(decoder), self.constants.offset(decoder)
            )
        if any(block.decoder.is_diagonal for block in run):
            scales = torch.cat([torch.diagonal(block.decoder.full_matrix()) for block in run])
            scale = self.constants.parameter(("scales", *(block.decoder.key for block in run)), scales, "scale")
            code = self.builder.emit(aten.mul.Tensor, code, scale)
        offsets = [block.decoder.offset for block in run]
        if all(offset is None for offset in offsets):
            return code
        joined = torch.cat([_or_zeros(block.decoder.offset, block.width) for block in run])
        key = ("offsets", *((block.decoder.key, block.decoder.offset_key) for block in run))
        return self.builder.emit(aten.add.Tensor, code, self.constants.parameter(key, joined, "offset"))

    def _plus_gated(self, decoded: Node, run: Sequence[Block]) -> Node:
        """Adds ``g_i u_i`` where there are gated offsets."""
        if self.value.units is None or all(block.unit is None for block in run):
            return decoded
        width, units = run[0].width, [block.unit or 0 for block in run]
        scale = self.builder.pick(self.value.units, units)
        if len({block.width for block in run}) == 1:
            constant = self.constants.stack([self.constants.gated(block.decoder) for block in run], width)
            added = self.builder.emit(aten.mul.Tensor, self._view(scale, len(run), 1), constant)
            return self.builder.emit(aten.add.Tensor, decoded, self._view(added, len(run) * width))
        parts = []
        for place, block in enumerate(run):
            own = self.builder.pick(scale, [place])
            parts.append(self.builder.emit(aten.mul.Tensor, own, self.constants.gated(block.decoder)))
        return self.builder.emit(aten.add.Tensor, decoded, self.builder.beside(parts))

    def _plus_offsets(self, decoded: Node, decoders: Sequence[Decoder]) -> Node:
        if all(decoder.offset is None for decoder in decoders):
            return decoded
        offsets = [self.constants.offset_or_zeros(decoder) for decoder in decoders]
        return self.builder.emit(aten.add.Tensor, decoded, self.constants.stack(offsets, decoders[0].width))

    def _view(self, node: Node, *tail: int) -> Node:
        return self.builder.view(node, self.value.lead, *tail)


def _or_zeros(vector: Tensor | None, width: int) -> Tensor:
    return torch.zeros(width, dtype=torch.float64) if vector is None else vector


def _alike(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Maximal runs of elementwise blocks, and of factored blocks of equal width and rank, with or without a unit."""
    run: list[Block] = []
    for block in blocks:
        if run and _kind(block) != _kind(run[0]):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _kind(block: Block) -> tuple[object, ...]:
    decoder = block.decoder
    sizes = (0, 0) if decoder.is_elementwise else (decoder.width, decoder.rank)
    return decoder.is_elementwise, sizes, block.unit is None
