"""LINEAR: constants that take a decoder in.

Replaces ``W (A z + o) + b`` with ``(W A) z + (b + W o)``; through a concat, ``W`` is cut into the columns of each
block: ``sum_i W_i (A_i z_i + o_i + g_i u_i) + b = [W_1 A_1, W_2 A_2, ..., W g] [z; u] + (b + sum_i W_i o_i)``. Where
one weight is applied to several fields whose decoders differ, every field gets a decoder of its own, ``W A_f``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from passes.codes import (
    NO_FEATURES,
    Block,
    CodeBuilder,
    Decoder,
    Factor,
    LowRankValue,
    Part,
    plain_block,
    split_rows,
    width_of,
)
from passes.graph import aten, constant_of, value_of
from passes.laws.common_form import units_as_columns
from passes.laws.outcomes import Absorbed, Carried, Law, Outcome, Restored, Values
from passes.sites import lookup_of, site_name

ABSORBED = "a Linear takes the decoder into its weight, so the features are never built"
COMPUTED = "its weight is computed from features, so it is a product of features"
PER_FIELD = "a factored weight is applied to several fields whose decoders differ"
CUT = "its weight cuts through the features of a code"
TABLE = "its weight is a table that rows are looked up in, which stays: the decoder taken in would be one more to keep"


@dataclass(frozen=True)
class Affine:
    """A constant map ``W y + b`` of the features.

    Attributes:
        weight: [k, features].
        bias: [k] or None.
        origin: node of the constant that the weight comes from, for names and counts.
        key: tells apart the maps of one graph.
        is_new: whether the original has no such parameter (a sum, say).
        as_it_is: whether the weight is the origin's own tensor, not transposed or cut.
    """

    weight: Tensor
    bias: Tensor | None
    origin: Node | None
    bias_origin: Node | None
    key: tuple[object, ...]
    is_new: bool = False
    as_it_is: bool = True

    @property
    def weight_key(self) -> tuple[object, ...]:
        """Tells apart the weights of one graph: maps that differ in the bias alone share theirs."""
        return tuple(part for part in self.key if part is not self.bias_origin)


def linear(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``linear(x, W, b)`` of a low-rank ``x``."""
    value = values.get(node.args[0]) if isinstance(node.args[0], Node) else None
    affine = affine_of_linear(builder, node)
    if not isinstance(value, LowRankValue) or affine is None:
        return Restored(COMPUTED, Law.INTERACTION)
    return apply(builder, value, affine)


def affine_of_linear(builder: CodeBuilder, node: Node) -> Affine | None:
    """The map of a Linear whose weight and bias are constants."""
    weight_node, bias_node = node.args[1], node.args[2] if len(node.args) > 2 else None
    weight, bias = builder.constant(weight_node), builder.constant(bias_node)
    if weight is None or (bias is None and bias_node is not None) or not isinstance(weight_node, Node):
        return None
    bias_origin = bias_node if isinstance(bias_node, Node) else None
    return Affine(weight, bias, weight_node, bias_origin, (weight_node, bias_node))


def apply(builder: CodeBuilder, value: LowRankValue, affine: Affine) -> Outcome:
    """Applies a map to the last feature axis: absorbed, or per field; not where its weight is a table, too."""
    if _is_table(affine.origin):
        return Restored(TABLE)
    ready = builder.push(value)
    if ready is not None:
        return Absorbed(linear_on(builder, ready, affine), ABSORBED)
    return per_field(builder, value, [affine])


def _is_table(constant: Node | None) -> bool:
    """Whether rows are looked up in a constant, or in what it is made of."""
    if constant is None:
        return False
    if any(lookup_of(user, constant) is not None for user in constant.users):
        return True
    return any(map(_is_table, constant.all_input_nodes))


def per_field(builder: CodeBuilder, value: LowRankValue, maps: Sequence[Affine]) -> Outcome:
    """The value whose rows along the last axis were each mapped: decoders ``W A_f``, no node but for units.

    Args:
        maps: one for all rows, or one per row.
    """
    crowded = [row for row in split_rows(value.blocks, value.trailing[-1]) or [] if len(row) > 1]
    if any(block.unit is not None for row in crowded for block in row):
        value = units_as_columns(builder, value)
    rows = split_rows(value.blocks, value.trailing[-1])
    if rows is None:
        return Restored(CUT)
    blocks = []
    for place, row in enumerate(rows):
        affine = maps[place % len(maps)]
        weight = affine.weight.to("cpu", torch.float64)
        bias = None if affine.bias is None else affine.bias.to("cpu", torch.float64)
        whole, first = None, 0
        columns: tuple[int, ...] = ()
        for block in row:
            piece = weight[:, first : first + block.width]
            part = block.decoder.mapped(piece, (affine.key, first, block.width))
            whole = part if whole is None else whole.beside(part)
            columns, first = (*columns, *block.columns), first + block.width
        if whole is None:
            return Restored(CUT)
        if bias is not None:
            whole = whole.shifted(bias, affine.key)
        unit = next((block.unit for block in row if block.unit is not None), None)
        blocks.append(Block(columns, whole, unit))
    for affine in maps:
        builder.spare(affine.origin, frozenset(site for row in rows if len(row) == 1 for site in row[0].decoder.sites))
    return Carried(value.with_blocks(blocks, (*value.trailing[:-1], int(maps[0].weight.shape[0]))))


def linear_site(
    builder: CodeBuilder, source: LowRankValue, affine: Affine, factored: tuple[Factor, str]
) -> LowRankValue:
    """The output of a factored Linear: its code, made from the input's code.

    Args:
        factored: the factor of the Linear's output, and the site's name.
    """
    factor, site = factored
    code = linear_on(builder, source, affine, factored)
    lead = tuple(value_of(code).shape)[:-1]
    return LowRankValue(code, lead, (factor.width,), (Block(tuple(range(factor.rank)), decoder_of(factor, site)),))


def decoder_of(factor: Factor, site: str) -> Decoder:
    """The decoder of a site's own output."""
    key = ("site", site)
    return Decoder(
        width=factor.width,
        rank=factor.rank,
        key=key,
        offset_key=None if factor.offset is None else key,
        matrix=factor.decoder,
        offset=factor.offset,
        terms=((site, factor.width),),
        completion=NO_FEATURES,
    )


def dense_source(node: Node) -> LowRankValue:
    """A dense node as the input of a Linear."""
    shape = tuple(value_of(node).shape)
    return LowRankValue(node, shape[:-1], (int(shape[-1]),), (plain_block(int(shape[-1])),))


def linear_on(
    builder: CodeBuilder, value: LowRankValue, affine: Affine, factored: tuple[Factor, str] | None = None
) -> Node:
    """The Linear node on codes; with a factor, the Linear that yields the code of its own output."""
    ready = builder.compact(value)
    weight, bias = _new_weight(builder, ready, affine, factored)
    if weight is None:
        return _constant_result(builder, ready, bias, factored[0].rank if factored else affine.weight.shape[0])
    parts = [*([ready.code] if ready.has_code else []), *([] if ready.units is None else [ready.units])]
    code = builder.beside(parts)
    return builder.emit(aten.linear.default, code, weight, bias)


def _constant_result(builder: CodeBuilder, value: LowRankValue, bias: Node | None, width: int) -> Node:
    """The result [*lead, width] of a map that reads constants alone."""
    zeros = builder.pick(value.code, [])
    if bias is not None:
        return builder.emit(aten.add.Tensor, zeros, bias)
    return builder.emit(aten.expand.default, zeros, [*(-1 for _ in value.lead), width])


def _new_weight(
    builder: CodeBuilder, value: LowRankValue, affine: Affine, factored: tuple[Factor, str] | None
) -> tuple[Node | None, Node | None]:
    """Weight (None where there is no code to read) and bias, each made once for all uses of the same constants."""
    if factored is None and affine.origin is not None and affine.as_it_is and _unchanged(value):
        return affine.origin, affine.bias_origin
    reads = value.has_code or value.units is not None
    pieces = tuple((block.columns, block.unit, block.decoder.key, block.decoder.gated_key) for block in value.blocks)
    offsets = tuple(block.decoder.offset_key for block in value.blocks)
    matrix_key = ("linear", affine.weight_key, factored is not None, pieces)
    bias_key = ("bias", affine.key, factored is not None, pieces, offsets)
    if bias_key in builder.shared:
        return builder.shared.get(matrix_key), builder.shared[bias_key]
    rows: tuple[Part, ...] = ()
    needs = frozenset(site for block in value.blocks if block.decoder.offset is not None for site in value.sites)
    absorbed = absorbed_shape if builder.dry else absorbed_weight
    new_weight, new_bias = absorbed(value, affine.weight, affine.bias)
    if factored is not None:
        factor, site = factored
        rows = ((site, factor.width),)
        new_weight, new_bias = factor.encode_weight(new_weight, new_bias)
        needs |= {site} if factor.offset is not None else set()
    name, like = _stem(builder, affine), value_of(value.code)
    if reads and matrix_key not in builder.shared:
        builder.shared[matrix_key] = builder.new_parameter(
            f"{name}.weight", new_weight, like,
            rows=rows, columns=code_parts(value), needs=frozenset(value.sites if affine.is_new else ()),
        )  # fmt: skip
    builder.shared[bias_key] = None
    if new_bias is not None:
        needs = needs if affine.bias_origin is None else frozenset()
        builder.shared[bias_key] = builder.new_parameter(f"{name}.bias", new_bias, like, rows=rows, needs=needs)
    return builder.shared.get(matrix_key), builder.shared[bias_key]


def _unchanged(value: LowRankValue) -> bool:
    """Whether the code is the features, in their order."""
    columns = [column for block in value.blocks for column in block.columns]
    return all(block.decoder.is_plain for block in value.blocks) and columns == list(range(value.features))


def absorbed_weight(value: LowRankValue, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The map on ``[code, units]``: [k, C + K] and [k], in float64, from one on the features, [k, features] and [k].

    A value without codes has C = 0.
    """
    width = width_of(value.code) if value.has_code else 0
    units = 0 if value.units is None else width_of(value.units)
    total = None if bias is None else bias.to(torch.float64)
    result = torch.zeros((weight.shape[0], width + units), dtype=torch.float64, device=weight.device)
    first = 0
    for block in value.blocks:
        decoder = block.decoder
        piece = weight[:, first : first + block.width].to(torch.float64)
        first += block.width
        part = piece if decoder.matrix is None else piece @ decoder.matrix.to(piece.device)
        result.index_add_(1, torch.tensor(block.columns, dtype=torch.int64, device=piece.device), part)
        if decoder.offset is not None:
            carried = piece @ decoder.offset.to(piece.device)
            total = carried if total is None else total + carried
        if decoder.gated is not None and block.unit is not None:
            result[:, width + block.unit] += piece @ decoder.gated.to(piece.device)
    return result, total


def absorbed_shape(value: LowRankValue, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tensors without data in the shapes of :func:`absorbed_weight`."""
    width = width_of(value.code) if value.has_code else 0
    units = 0 if value.units is None else width_of(value.units)
    has_bias = bias is not None or any(block.decoder.offset is not None for block in value.blocks)
    rows = int(weight.shape[0])
    total = torch.empty((rows,), dtype=torch.float64, device="meta") if has_bias else None
    return torch.empty((rows, width + units), dtype=torch.float64, device="meta"), total


def code_parts(value: LowRankValue) -> tuple[Part, ...]:
    """The parts of codes in the input of a map; blocks that read the same columns are views of one part."""
    widths: dict[tuple[str, int, tuple[int, ...]], int] = {}
    for block in value.blocks:
        for place, (site, width) in enumerate(block.decoder.terms):
            key = (site, place, block.columns)
            widths[key] = widths.get(key, 0) + width
    return tuple((site, width) for (site, *_), width in widths.items())


def _stem(builder: CodeBuilder, affine: Affine) -> str:
    """A readable name for new parameters: the old weight's, or the node's."""
    if affine.origin is not None and constant_of(builder.module, affine.origin) is not None:
        return f"{site_name(str(affine.origin.target))}.on_codes"
    return f"{builder.node.name}.on_codes"
