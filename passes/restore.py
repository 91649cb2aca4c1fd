"""Restore: decodes a low-rank value where an operator needs the features themselves.

Replaces a code ``z`` with ``A_i z_i + o_i + g_i u_i`` for every block, in the value's logical shape. Blocks of one size
are decoded together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.decoder import Decoder
from passes.graph_tools import aten, fake_mode, stamp, value_of
from passes.low_rank_value import Block, LowRankValue
from passes.parameter_ledger import Extent, Record

RULE = "restore"


def restore(builder: CodeBuilder, value: LowRankValue, like: Node) -> Node:
    """The features of a value."""
    return _Restore(builder, value, like).run()


class _Restore:
    """One restore."""

    def __init__(self, builder: CodeBuilder, value: LowRankValue, like: Node) -> None:
        self.builder, self.value, self.like = builder, value, like

    def run(self) -> Node:
        parts = [self._part(run) for run in _alike(self.value.blocks)]
        whole = self.builder.beside(parts, rule=RULE, like=self.like)
        return self._view(whole, *self.value.trailing)

    def _part(self, run: Sequence[Block]) -> Node:
        """Decodes a run of blocks of equal sizes to [*lead, features]."""
        columns = [column for block in run for column in block.columns]
        code = self.builder.pick(self.value.code, columns, rule=RULE, like=self.like)
        features = sum(block.width for block in run)
        decoders = [block.decoder for block in run]
        first = decoders[0]
        if len(run) == 1 or first.is_elementwise:
            decoded = self._decode_one(code, first, run)
        else:
            rows = self._view(code, len(run), first.rank)
            if all(decoder.same_constants(first) for decoder in decoders):
                decoded = self._emit(aten.linear.default, rows, self._matrix(first), self._offset(first))
            else:
                stacked = self._stack([self._matrix(decoder) for decoder in decoders], first.width, first.rank)
                decoded = self._emit(aten.einsum.default, "...kr,knr->...kn", [rows, stacked])
                decoded = self._plus_offsets(decoded, [self._offset(decoder) for decoder in decoders], first.width)
            decoded = self._view(decoded, features)
        return self._plus_gated(decoded, run)

    def _decode_one(self, code: Node, decoder: Decoder, run: Sequence[Block]) -> Node:
        if not decoder.is_elementwise:
            return self._emit(aten.linear.default, code, self._matrix(decoder), self._offset(decoder))
        if any(block.decoder.is_diagonal for block in run):
            scales = torch.cat([torch.diagonal(block.decoder.full_matrix()) for block in run])
            scale = self._constant(("scales", *(block.decoder.key for block in run)), scales, "scale")
            code = self._emit(aten.mul.Tensor, code, scale)
        offsets = [block.decoder.offset for block in run]
        if all(offset is None for offset in offsets):
            return code
        joined = torch.cat([_or_zeros(block.decoder.offset, block.width) for block in run])
        key = ("offsets", *((block.decoder.key, block.decoder.offset_key) for block in run))
        return self._emit(aten.add.Tensor, code, self._constant(key, joined, "offset"))

    def _plus_gated(self, decoded: Node, run: Sequence[Block]) -> Node:
        """Adds ``g_i u_i`` where there are gated offsets."""
        if self.value.units is None or all(block.unit is None for block in run):
            return decoded
        width, units = run[0].width, [block.unit or 0 for block in run]
        scale = self.builder.pick(self.value.units, units, rule=RULE, like=self.like)
        if len({block.width for block in run}) == 1:
            constant = self._stack([self._gated(block.decoder) for block in run], width)
            added = self._emit(aten.mul.Tensor, self._view(scale, len(run), 1), constant)
            return self._emit(aten.add.Tensor, decoded, self._view(added, len(run) * width))
        parts = []
        for place, block in enumerate(run):
            own = self.builder.pick(scale, [place], rule=RULE, like=self.like)
            parts.append(self._emit(aten.mul.Tensor, own, self._gated(block.decoder)))
        return self._emit(aten.add.Tensor, decoded, self.builder.beside(parts, rule=RULE, like=self.like))

    def _plus_offsets(self, decoded: Node, offsets: list[Node | None], width: int) -> Node:
        if all(offset is None for offset in offsets):
            return decoded
        zero = self._constant_node(aten.zeros.default, [width]) if any(offset is None for offset in offsets) else None
        rows = [offset if offset is not None else zero for offset in offsets]
        return self._emit(aten.add.Tensor, decoded, self._stack([row for row in rows if row is not None], width))

    def _stack(self, parts: Sequence[Node], *shape: int) -> Node:
        """Constants of one shape as one constant with a new first axis (a cat: one node where a stack exports many)."""
        joined = self._emit(aten.cat.default, list(parts))
        return self._emit(aten.reshape.default, joined, [len(parts), *shape])

    def _constant_node(self, target: Callable[..., Tensor], *sizes: object) -> Node:
        """A constant that needs no parameter."""
        code = value_of(self.value.code)
        form = {"dtype": code.dtype, "device": code.device}
        node = self.builder.graph.call_function(target, sizes, form)  # type: ignore[arg-type]
        with fake_mode(self.builder.graph):
            node.meta["val"] = target(*sizes, **form)
        stamp(node, RULE, self.like)
        return node

    def _matrix(self, decoder: Decoder) -> Node:
        """``A`` as a parameter, or as the parameters of its parts side by side; made once per graph."""
        if _is_assembled(decoder):
            key = ("matrix", decoder.key)
            if key not in self.builder.shared:
                parts = [
                    self._constant_node(aten.eye.default, part.width) if part.is_identity else self._matrix(part)
                    for part in decoder.parts
                ]
                self.builder.shared[key] = self._emit(aten.cat.default, parts, 1)
            node: Node = self.builder.shared[key]
            return node
        return self._constant(("matrix", decoder.key), decoder.full_matrix(), "decoder.weight", decoder)

    def _offset(self, decoder: Decoder) -> Node | None:
        """``o`` as a parameter, made once per graph."""
        if decoder.offset is None:
            return None
        key = ("offset", decoder.key, decoder.offset_key)
        if _is_assembled(decoder):
            if key not in self.builder.shared:
                parts = [offset for part in decoder.parts if (offset := self._offset(part)) is not None]
                self.builder.shared[key] = self._emit(aten.sum.dim_IntList, self._stack(parts, decoder.width), [0])
            node: Node = self.builder.shared[key]
            return node
        return self._constant(key, decoder.offset, "decoder.bias", decoder)

    def _gated(self, decoder: Decoder) -> Node:
        """``g`` as a parameter, made once per graph."""
        vector = _or_zeros(decoder.gated, decoder.width)
        return self._constant(("gated", decoder.key, decoder.gated_key), vector, "decoder.gated", decoder)

    def _constant(self, key: object, tensor: Tensor, name: str, decoder: Decoder | None = None) -> Node:
        shared = self.builder.shared
        if key not in shared:
            site = next(iter(dict(decoder.terms))) if decoder is not None and decoder.terms else self.value.sites[0]
            columns = Extent(1) if tensor.dim() == 1 else Extent(int(tensor.shape[1]))
            if decoder is not None and tensor.dim() == 2:
                columns = decoder_extent(decoder)
            needs = frozenset(self.value.sites)
            if decoder is not None and decoder.sites and not (tensor.dim() == 1 and decoder.shifted_by_constant):
                needs = decoder.sites
            record = Record(Extent(int(tensor.shape[0])), columns, needs)
            shared[key] = self.builder.new_parameter(
                f"{site}.{name}", tensor, value_of(self.value.code), record, rule=RULE
            )
        node: Node = shared[key]
        return node

    def _emit(self, target: object, *args: object) -> Node:
        return self.builder.emit(target, *args, rule=RULE, like=self.like)  # type: ignore[arg-type]

    def _view(self, node: Node, *tail: int) -> Node:
        return self.builder.view(node, self.value.lead, self.like, *tail, rule=RULE)


def _is_assembled(decoder: Decoder) -> bool:
    """Whether a decoder is made of other sites' decoders, which are parameters already."""
    return bool(decoder.parts) and not any(part.is_identity and not part.is_plain for part in decoder.parts)


def decoder_extent(decoder: Decoder) -> Extent:
    """The code width of one decoder (in a dry run, where every factored term has rank 1)."""
    return Extent(decoder.plain_columns, decoder.extent_terms(), tuple(sites for _, sites in decoder.unit_columns))


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
