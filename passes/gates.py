"""GATE: features scaled by a number that is the same for all of them.

Replaces ``g (A z + o)`` with ``A (g z) + o (g 1)``: the code is scaled, and the offset's 1 is carried along as a unit.
A gate that is constant along every field (``[.., fields, 1]``) scales each field's columns by its own number. A
constant number goes into the offsets; a constant vector along the features goes into the decoder's rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from passes.code_builder import CodeBuilder, width_of
from passes.graph_tools import aten, value_of
from passes.low_rank_value import Block, LowRankValue
from passes.moves import OTHER_DTYPE, Positions, equal_sizes, keeps_shape, static
from passes.outcomes import Carried, Law, Outcome, Restored, Values

RULE = "gate"
PRODUCT = "it multiplies features with features, and a product of two codes is not a code"
VARIES = "it scales the features of one code by different numbers"
TWICE = "its offset is gated already and has a constant part as well"


def multiply(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``mul`` of a low-rank value by a gate, a constant or a number."""
    one, other = node.args[0], node.args[1]
    if isinstance(one, Node) and isinstance(other, Node) and one in values and other in values:
        return Restored(PRODUCT, Law.INTERACTION)
    source, gate = (one, other) if isinstance(one, Node) and one in values else (other, one)
    value = values.get(source) if isinstance(source, Node) else None
    return gated(builder, node, value, gate)


def divide(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``div`` of a low-rank value by a gate (a count, a norm), a constant or a number."""
    source, divisor = node.args[0], node.args[1]
    value = values.get(source) if isinstance(source, Node) else None
    if not isinstance(value, LowRankValue) or (isinstance(divisor, Node) and divisor in values):
        return Restored("it divides by features, which a code does not follow", Law.INTERACTION)
    if not isinstance(divisor, Node):
        return gated(builder, node, value, 1.0 / divisor)  # type: ignore[operator]
    divisor = _in_dtype(builder, node, divisor, value)
    return gated(builder, node, value, builder.emit(aten.reciprocal.default, divisor, rule=RULE, like=node))


def gated(builder: CodeBuilder, node: Node, value: Any, gate: Any) -> Outcome:
    """A low-rank value times a gate or a number."""
    if not isinstance(value, LowRankValue) or value_of(node).dtype != value_of(value.code).dtype:
        return Restored(OTHER_DTYPE)
    if isinstance(gate, (int, float)):
        return Carried(scaled(builder, node, value, float(gate)))
    if not isinstance(gate, Node):
        return Restored(PRODUCT, Law.INTERACTION)
    return _by_tensor(builder, node, value, gate)


def _by_tensor(builder: CodeBuilder, node: Node, value: LowRankValue, gate: Node) -> Outcome:
    shape = tuple(value_of(gate).shape)
    if not keeps_shape(node, value):
        return Restored("it repeats the features along other axes while it scales them")
    tail = (1,) * (len(value.trailing) - len(shape)) + shape[max(len(shape) - len(value.trailing), 0) :]
    if not static(tail):
        return Restored(VARIES, Law.INTERACTION)
    constant = builder.constant(gate)
    gate = _in_dtype(builder, node, gate, value)
    if all(size == 1 for size in tail):
        return _by_one(builder, node, value, gate)
    if constant is not None and constant.numel() == int(np.prod(tail)):
        return _by_vector(builder, value, gate, constant.reshape(tail))
    return _by_field(builder, node, value, gate, tail)


def _in_dtype(builder: CodeBuilder, node: Node, gate: Node, value: LowRankValue) -> Node:
    """The gate in the code's number format: masks and counts are no floating numbers."""
    dtype = value_of(value.code).dtype
    if value_of(gate).dtype == dtype:
        return gate
    return builder.emit(aten._to_copy.default, gate, rule=RULE, like=node, dtype=dtype)


def scaled(builder: CodeBuilder, node: Node, value: LowRankValue, number: float) -> LowRankValue:
    """``c (A z + o + g u)`` with the code times c and the offsets times c; the units stay."""
    code = builder.emit(aten.mul.Tensor, value.code, number, rule=RULE, like=node)
    blocks = [replace(block, decoder=block.decoder.offsets_scaled(number)) for block in value.blocks]
    return replace(value, code=code, blocks=tuple(blocks))


def _by_one(builder: CodeBuilder, node: Node, value: LowRankValue, gate: Node) -> Outcome:
    """One number per position of the leading axes."""
    if any(block.decoder.offset is not None and block.unit is not None for block in value.blocks):
        return Restored(TWICE)
    column = _per_lead(builder, node, value, gate)
    code = builder.emit(aten.mul.Tensor, value.code, column, rule=RULE, like=node)
    units, fresh = value.units, None
    if units is not None:
        units = builder.emit(aten.mul.Tensor, units, column, rule=RULE, like=node)
    if any(block.decoder.offset is not None for block in value.blocks):
        column = _with_lead(builder, node, value, column)
        fresh = 0 if units is None else width_of(units)
        units = column if units is None else builder.beside([units, column], rule=RULE, like=node)
    blocks = [
        block if block.decoder.offset is None else replace(block, decoder=block.decoder.gated_offset(), unit=fresh)
        for block in value.blocks
    ]
    return Carried(replace(value, code=code, units=units, blocks=tuple(blocks)))


def _per_lead(builder: CodeBuilder, node: Node, value: LowRankValue, gate: Node) -> Node:
    """The gate [.., 1 ..] with one feature axis of size 1, broadcastable against the code."""
    shape = tuple(value_of(gate).shape)
    spare = len(value.trailing) - 1
    if len(shape) <= 1 or spare <= 0:
        return gate
    drop = min(spare, len(shape) - 1)
    kept = shape[: len(shape) - 1 - drop]
    return builder.view(gate, kept, node, 1, rule=RULE)


def _by_vector(builder: CodeBuilder, value: LowRankValue, gate: Node, vector: Tensor) -> Outcome:
    """A constant along the features: decoder rows times the vector, a dense feature becomes a decoder of its own."""
    spread = torch.broadcast_to(vector, value.trailing).reshape(-1).to("cpu", torch.float64)
    blocks, first = [], 0
    for block in value.blocks:
        piece = spread[first : first + block.width]
        blocks.append(replace(block, decoder=block.decoder.mapped(torch.diag(piece), (gate, first, block.width))))
        first += block.width
    builder.consume(gate, value)
    return Carried(value.with_blocks(blocks, value.trailing))


def _by_field(builder: CodeBuilder, node: Node, value: LowRankValue, gate: Node, tail: tuple[int, ...]) -> Outcome:
    """One number per field: constant along the features of every code."""
    count = int(np.prod(tail))
    which: Positions = np.broadcast_to(np.arange(count).reshape(tail), value.trailing).reshape(-1)
    if _share_columns(value):
        return Restored("it scales features that share code columns by different numbers")
    chosen = np.zeros(width_of(value.code), dtype=np.int64)
    blocks, first = list[Block](), 0
    picked: list[int] = []
    old_units: list[int | None] = []
    for block in value.blocks:
        gates = which[first : first + block.width]
        first += block.width
        if not block.decoder.is_identity and len(set(gates.tolist())) > 1:
            return Restored(VARIES, Law.INTERACTION)
        if block.decoder.offset is not None and block.unit is not None:
            return Restored(TWICE)
        identity = block.decoder.is_identity
        chosen[list(block.columns)] = gates if identity else gates[0]
        decoder, unit = block.decoder, None
        if decoder.offset is not None or block.unit is not None:
            if len(set(gates.tolist())) > 1:
                return Restored(VARIES, Law.INTERACTION)
            unit = len(picked)
            picked.append(int(gates[0]))
            old_units.append(block.unit)
            decoder = decoder.gated_offset()
        blocks.append(replace(block, decoder=decoder, unit=unit))
    flat = builder.view(gate, tuple(value_of(gate).shape)[: -len(tail)], node, count, rule=RULE)
    code = builder.emit(
        aten.mul.Tensor, value.code, _chosen(builder, node, flat, chosen.tolist()), rule=RULE, like=node
    )
    if len({unit is None for unit in old_units}) > 1:
        return Restored(TWICE)
    units = _field_units(builder, node, value, flat, list(zip(picked, old_units, strict=True)))
    return Carried(replace(value, code=code, units=units, blocks=tuple(blocks)))


def _field_units(
    builder: CodeBuilder, node: Node, value: LowRankValue, flat: Node, wanted: Sequence[tuple[int, int | None]]
) -> Node | None:
    """The units of a gate per field: for each, the gate's column times the unit that was there before, if any."""
    if not wanted:
        return None
    units = _with_lead(builder, node, value, _chosen(builder, node, flat, [column for column, _ in wanted]))
    before = [unit for _, unit in wanted if unit is not None]
    if value.units is None or not before:
        return units
    old = builder.pick(value.units, before, rule=RULE, like=node)
    return builder.emit(aten.mul.Tensor, units, old, rule=RULE, like=node)


def _with_lead(builder: CodeBuilder, node: Node, value: LowRankValue, units: Node) -> Node:
    """Units with exactly the value's leading axes."""
    if equal_sizes(tuple(value_of(units).shape)[:-1], value.lead):
        return units
    ones = builder.pick(value.code, [0], rule=RULE, like=node)
    shaped = builder.emit(aten.zeros_like.default, ones, rule=RULE, like=node)
    return builder.emit(aten.add.Tensor, units, shaped, rule=RULE, like=node)


def _chosen(builder: CodeBuilder, node: Node, flat: Node, index: list[int]) -> Node:
    """Columns of a gate, repeated: runs of one column by expansion, ascending runs by slices."""
    axis = len(value_of(flat).shape) - 1
    if index == list(range(width_of(flat))):
        return flat
    lead = tuple(value_of(flat).shape)[:-1]
    size, repeats = width_of(flat), len(index) // max(width_of(flat), 1)
    if repeats and index == [column for column in range(size) for _ in range(repeats)]:
        tall = builder.emit(aten.unsqueeze.default, flat, axis + 1, rule=RULE, like=node)
        wide = builder.emit(aten.expand.default, tall, [*(-1 for _ in range(axis + 1)), repeats], rule=RULE, like=node)
        return builder.view(wide, lead, node, len(index), rule=RULE)
    parts: list[Node] = []
    for which, run in itertools.groupby(index):
        column, times = builder.pick(flat, [which], rule=RULE, like=node), len(list(run))
        if times > 1:
            sizes = [*(-1 for _ in range(axis)), times]
            column = builder.emit(aten.expand.default, column, sizes, rule=RULE, like=node)
        parts.append(column)
    return builder.beside(parts, rule=RULE, like=node)


def _share_columns(value: LowRankValue) -> bool:
    """Whether two blocks read one column."""
    columns = [column for block in value.blocks for column in block.columns]
    return len(columns) != len(set(columns))
