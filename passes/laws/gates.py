"""GATE: features scaled by a number that is the same for all of them.

Replaces ``g (A z + o)`` with ``A (g z) + o (g 1)``: the code is scaled, and the offset's 1 is carried along as a unit.
A gate that is constant along every field (``[.., fields, 1]``) scales each field's columns by its own number. A
constant number goes into the offsets; a constant vector along the features goes into the decoder's rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from passes.codes import Block, CodeBuilder, LowRankValue, width_of
from passes.graph import aten, shape_of, value_of
from passes.laws import quadratic
from passes.laws.common_form import separated, spread_features, units_as_columns
from passes.laws.moves import OTHER_DTYPE, UNKNOWN_SIZES, Positions, equal_sizes, static
from passes.laws.need_features import MULTIPLIES
from passes.laws.outcomes import Carried, Law, Outcome, Restored, Rule, Values

REPEATS = (
    "it repeats the features and scales every copy by constants of its own, which would lengthen the weights after it"
)
VARIES = "it scales the features of one code by different numbers"


_REPEATS = frozenset(
    {
        aten.expand.default, aten.repeat.default, aten.tile.default, aten.repeat_interleave.self_int,
        aten._to_copy.default, aten.clone.default, aten.where.ScalarOther, aten.where.ScalarSelf,
    }
)  # fmt: skip
"""Operators, besides the pointwise ones, whose result is uniform along an axis where all operands are."""

_CONSTANTS = frozenset(
    {
        aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.zeros.default,
        aten.ones.default, aten.full.default,
    }
)  # fmt: skip


def multiply(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``mul`` of a low-rank value by a gate, a constant or a number; by another one, see the products below."""
    one, other = node.args[0], node.args[1]
    if isinstance(one, Node) and isinstance(other, Node) and one in values and other in values:
        return quadratic.multiply(builder, node, values)
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
    divisor = _narrowed(builder, _tensor(builder, divisor, value), len(value.trailing))
    divisor = _in_dtype(builder, divisor, value)
    return gated(builder, node, value, builder.emit(aten.reciprocal.default, divisor))


def gated(
    builder: CodeBuilder,
    node: Node,
    value: Any,
    gate: Any,
    *,
    masking: bool = False,
) -> Outcome:
    """A low-rank value times a gate or a number.

    Args:
        masking: the gate is a mask of booleans, and what it does not keep becomes 0, whatever it was.
    """
    if not isinstance(value, LowRankValue) or value_of(node).dtype != value_of(value.code).dtype:
        return Restored(OTHER_DTYPE)
    if isinstance(gate, (int, float)):
        return Carried(scaled(builder, value, float(gate)))
    if not isinstance(gate, Node):
        return Restored(MULTIPLIES, Law.INTERACTION)
    gate = _tensor(builder, gate, value)
    ready = _spread(builder, value, tuple(value_of(node).shape))
    if ready is None:
        return Restored(UNKNOWN_SIZES)
    vector = builder.constant(gate)
    if vector is not None and ready.features > value.features and vector.numel() > 1 and not masking:
        return Restored(REPEATS)
    return _by_tensor(builder, ready, gate, masking=masking)


def _by_tensor(builder: CodeBuilder, ready: LowRankValue, gate: Node, *, masking: bool) -> Outcome:
    gate = _narrowed(builder, gate, len(ready.trailing))
    shape = tuple(value_of(gate).shape)
    tail = (1,) * (len(ready.trailing) - len(shape)) + shape[max(len(shape) - len(ready.trailing), 0) :]
    if not static(tail):
        return Restored(VARIES, Law.INTERACTION)
    constant = builder.constant(gate)
    if not masking:
        gate = _in_dtype(builder, gate, ready)
    if all(size == 1 for size in tail):
        return _by_one(builder, ready, gate, masking=masking)
    if constant is not None and constant.numel() == math.prod(tail) and not masking:
        return _by_vector(builder, ready, gate, constant.reshape(tail))
    return _by_field(builder, ready, gate, tail, masking=masking)


def _spread(builder: CodeBuilder, value: LowRankValue, shape: Sequence[Any]) -> LowRankValue | None:
    """The value with its feature axes as the result has them; a product repeats leading axes by itself."""
    if not equal_sizes(shape[-len(value.trailing) :], value.trailing) and equal_sizes(shape[-1:], value.trailing[-1:]):
        pushed = builder.push(value)
        if pushed is not None:
            return pushed
    return spread_features(builder, value, shape)


def _tensor(builder: CodeBuilder, gate: Node, value: LowRankValue) -> Node:
    """The gate as a tensor; sizes and what is computed from them are numbers of the graph."""
    if shape_of(gate) is not None:
        return gate
    form = {"dtype": value_of(value.code).dtype, "device": value_of(value.code).device}
    return builder.emit(aten.full.default, [1], gate, **form)


def _times(builder: CodeBuilder, code: Node, column: Node, *, masking: bool) -> Node:
    """A code or units times a gate; a mask selects, so that 0 comes of anything."""
    if masking:
        return builder.emit(aten.where.ScalarOther, column, code, 0.0)
    return builder.emit(aten.mul.Tensor, code, column)


def _in_dtype(builder: CodeBuilder, gate: Node, value: LowRankValue) -> Node:
    """The gate in the code's number format: masks and counts are no floating numbers."""
    dtype = value_of(value.code).dtype
    if value_of(gate).dtype == dtype:
        return gate
    return builder.emit(aten._to_copy.default, gate, dtype=dtype)


def scaled(builder: CodeBuilder, value: LowRankValue, number: float) -> LowRankValue:
    """``c (A z + o + g u)`` with the code times c and the offsets times c; the units stay."""
    if number == 1:
        return value
    code = builder.emit(aten.mul.Tensor, value.code, number)
    return replace(value.with_decoders(lambda decoder, _: decoder.offsets_scaled(number)), code=code)


def _by_one(builder: CodeBuilder, value: LowRankValue, gate: Node, *, masking: bool) -> Outcome:
    """One number per position of the leading axes."""
    value = units_as_columns(builder, value, only=lambda block: block.decoder.offset is not None)
    column = _per_lead(builder, value, gate)
    code = _times(builder, value.code, column, masking=masking)
    value = replace(value, code=code, lead=tuple(value_of(code).shape)[:-1])
    units, fresh = value.units, None
    if units is not None:
        units = _times(builder, units, column, masking=masking)
    if any(block.decoder.offset is not None for block in value.blocks):
        column = _with_lead(builder, value, _in_dtype(builder, column, value))
        fresh = 0 if units is None else width_of(units)
        units = column if units is None else builder.beside([units, column])
    blocks = [
        block if block.decoder.offset is None else replace(block, decoder=block.decoder.gated_offset(), unit=fresh)
        for block in value.blocks
    ]
    return Carried(replace(value, units=units, blocks=tuple(blocks)))


def _per_lead(builder: CodeBuilder, value: LowRankValue, gate: Node) -> Node:
    """The gate [.., 1 ..] with one feature axis of size 1, broadcastable against the code."""
    shape = tuple(value_of(gate).shape)
    spare = len(value.trailing) - 1
    if len(shape) <= 1 or spare <= 0:
        return gate
    drop = min(spare, len(shape) - 1)
    kept = shape[: len(shape) - 1 - drop]
    return builder.view(gate, kept, 1)


def _by_vector(builder: CodeBuilder, value: LowRankValue, origin: Node, vector: Tensor) -> Outcome:
    """A constant of the graph along the features, broadcastable to their axes: decoder rows times the vector."""
    spread = torch.broadcast_to(vector, value.trailing).reshape(-1).to("cpu", torch.float64)
    key = origin, value.trailing
    return Carried(value.with_decoders(lambda decoder, own: decoder.scaled_by(spread[own], (*key, own.start))))


def _by_field(
    builder: CodeBuilder, value: LowRankValue, gate: Node, tail: tuple[int, ...], *, masking: bool
) -> Outcome:
    """One number per field: constant along the features of every code."""
    # for every feature, which of the gate's numbers is its own
    which = np.broadcast_to(np.arange(math.prod(tail)).reshape(tail), value.trailing).reshape(-1)
    blocks = _cut_at_changes(value.blocks, which)
    if blocks is None:
        return Restored(VARIES, Law.INTERACTION)
    both = any(block.decoder.offset is not None and block.unit is not None for block in blocks)
    shifted = {block.unit is None for block in blocks if block.decoder.offset is not None or block.unit is not None}
    value = replace(value, blocks=tuple(blocks))
    if both or len(shifted) > 1:
        value = units_as_columns(builder, value)
    value = separated(builder, value)
    chosen = np.zeros(width_of(value.code), dtype=np.int64)
    blocks, first = list[Block](), 0
    picked: list[tuple[int, int | None]] = []
    for block in value.blocks:
        gates = which[first : first + block.width]
        first += block.width
        chosen[list(block.columns)] = gates if block.decoder.is_elementwise else gates[0]
        decoder, unit = block.decoder, None
        if decoder.offset is not None or block.unit is not None:
            unit = len(picked)
            picked.append((int(gates[0]), block.unit))
            decoder = decoder.gated_offset()
        blocks.append(replace(block, decoder=decoder, unit=unit))
    flat = builder.view(gate, tuple(value_of(gate).shape)[: -len(tail)], math.prod(tail))
    columns = _columns_of(builder, flat, chosen.tolist())
    code = _times(builder, value.code, columns, masking=masking)
    value = replace(value, code=code, lead=tuple(value_of(code).shape)[:-1])
    units = _field_units(builder, value, flat, picked, masking=masking)
    return Carried(replace(value, units=units, blocks=tuple(blocks)))


def _cut_at_changes(blocks: Sequence[Block], which: Positions) -> list[Block] | None:
    """The blocks, elementwise ones cut where ``which`` changes; None where it changes within a code."""
    pieces, first = list[Block](), 0
    for block in blocks:
        own = which[first : first + block.width]
        first += block.width
        cuts = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), block.width]
        if len(cuts) > 2 and not block.decoder.is_elementwise:
            return None
        if len(cuts) > 2 and not block.decoder.is_plain:
            pieces += [block.take(range(start, end)) for start, end in itertools.pairwise(cuts)]
        else:
            pieces.append(block)
    return pieces


def _field_units(
    builder: CodeBuilder, value: LowRankValue, flat: Node, wanted: Sequence[tuple[int, int | None]], *, masking: bool
) -> Node | None:
    """The units of a gate per field: for each, the gate's column times the unit that was there before, if any."""
    if not wanted:
        return None
    columns = _columns_of(builder, flat, [column for column, _ in wanted])
    before = [unit for _, unit in wanted if unit is not None]
    if value.units is None or not before:
        return _with_lead(builder, value, _in_dtype(builder, columns, value))
    old = builder.pick(value.units, before)
    return _times(builder, old, columns, masking=masking)


def _with_lead(builder: CodeBuilder, value: LowRankValue, units: Node) -> Node:
    """Units with exactly the value's leading axes."""
    if equal_sizes(tuple(value_of(units).shape)[:-1], value.lead):
        return units
    ones = builder.pick(value.code, [0])
    shaped = builder.emit(aten.zeros_like.default, ones)
    return builder.emit(aten.add.Tensor, units, shaped)


def _columns_of(builder: CodeBuilder, flat: Node, index: list[int]) -> Node:
    """Columns of a gate, repeated: runs of one column by expansion, ascending runs by slices."""
    axis = len(value_of(flat).shape) - 1
    if index == list(range(width_of(flat))):
        return flat
    lead = tuple(value_of(flat).shape)[:-1]
    size, repeats = width_of(flat), len(index) // max(width_of(flat), 1)
    if repeats and index == [column for column in range(size) for _ in range(repeats)]:
        tall = builder.emit(aten.unsqueeze.default, flat, axis + 1)
        wide = builder.emit(aten.expand.default, tall, [*(-1 for _ in range(axis + 1)), repeats])
        return builder.view(wide, lead, len(index))
    parts: list[Node] = []
    for which, run in itertools.groupby(index):
        column, times = builder.pick(flat, [which]), len(list(run))
        if times > 1:
            sizes = [*(-1 for _ in range(axis)), times]
            column = builder.emit(aten.expand.default, column, sizes)
        parts.append(column)
    return builder.beside(parts)


def _narrowed(builder: CodeBuilder, tensor: Node, axes: int) -> Node:
    """The tensor with size 1 along those of its last ``axes`` axes along which it is known to be uniform."""
    shape = shape_of(tensor) or ()
    for axis in range(1, min(axes, len(shape)) + 1):
        if str(shape[-axis]) != "1" and is_uniform(tensor, axis):
            tensor = builder.emit(aten.slice.Tensor, tensor, len(shape) - axis, 0, 1)
    return tensor


def is_uniform(node: Node, axis: int) -> bool:
    """Whether a tensor is known to be the same all along an axis, counted from the end (1 is the last)."""
    pending, seen = [node], set[Node]()
    while pending:
        each = pending.pop()
        shape = shape_of(each)
        if each in seen or (shape is not None and (axis > len(shape) or str(shape[-axis]) == "1")):
            continue
        seen.add(each)
        if each.target in _CONSTANTS:
            continue
        if shape is None or not _keeps_axes(each):
            return False
        pending += [operand for operand in each.all_input_nodes if shape_of(operand) is not None]
    return True


def _keeps_axes(node: Node) -> bool:
    """Whether every entry of a node's result depends on the entries of its operands at the same place."""
    if node.target in _REPEATS:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    tags = node.target.tags
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


LAWS: dict[Any, Rule] = {aten.mul.Tensor: multiply, aten.div.Tensor: divide}
