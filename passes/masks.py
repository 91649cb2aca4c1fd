"""GATE: masks that choose between features and something else.

Replaces ``where(m, y, 0)`` with ``A where(m, z, 0) + o where(m, 1, 0)``; ``where(m, y, c)`` with the same plus
``c (1 - m)``; ``where(m, y, y')`` with ``where(m, y, 0) + where(m, 0, y')``, or with one choice between two codes where
both have the same decoder. ``masked_fill(y, m, c)`` is ``where(m, c, y)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node

from passes.code_builder import CodeBuilder, width_of
from passes.common_form import along_features, spread, units_as_columns
from passes.gates import (
    VARIES,
    columns_of,
    cut_at_changes,
    flat_gate,
    gated,
    in_dtype,
    narrowed,
    per_feature,
    per_lead,
    with_lead,
)
from passes.graph_tools import aten, value_of
from passes.low_rank_value import Block, LowRankValue
from passes.moves import UNKNOWN_SIZES, known_numbers, static
from passes.outcomes import Carried, Law, Outcome, Restored, Rule, Values
from passes.provenance import MOVES
from passes.sums import added

DENSE = "it chooses between features that are written in a code and dense ones"
INFINITE = "it writes an infinite number over features, which a sum of a code and constants cannot hold"
BY_FEATURES = "its mask is computed from the features themselves"

_COPIES = MOVES | {aten._to_copy.default}
"""Operators whose result holds only numbers of their first operand."""

_FILLED: dict[Any, float] = {
    aten.zeros_like.default: 0.0, aten.zeros.default: 0.0, aten.ones_like.default: 1.0, aten.ones.default: 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class _Choice:
    """``on_true`` where the mask is set, ``on_false`` where it is not: low-rank values, numbers or nodes."""

    mask: Node
    on_true: Any
    on_false: Any


def where(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``where`` of a mask and two tensors or numbers."""
    mask, kept, other = node.args
    return _chosen(builder, node, values, (mask, kept, other))


def masked_fill(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``masked_fill``: ``where`` with the filling where the mask is set."""
    source, mask, filling = node.args
    return _chosen(builder, node, values, (mask, filling, source))


def _chosen(builder: CodeBuilder, node: Node, values: Values, arguments: tuple[Any, Any, Any]) -> Outcome:
    mask, *sides = arguments
    if not isinstance(mask, Node) or mask in values:
        return Restored(BY_FEATURES, Law.NONLINEAR)
    known = [value for side in sides if isinstance(value := _value(values, side), LowRankValue)]
    sources, ready = [mask, *(value.code for value in known)], list[Any]()
    for side in sides:
        value = _value(values, side)
        ready.append(spread(builder, node, value, sources) if isinstance(value, LowRankValue) else side)
    if ready[0] is None or ready[1] is None:
        return Restored(UNKNOWN_SIZES)
    choice = _Choice(mask, ready[0], ready[1])
    return _of_two(builder, node, choice) if len(known) == 2 else _of_one(builder, node, choice)


def _of_two(builder: CodeBuilder, node: Node, choice: _Choice) -> Outcome:
    """A choice between two low-rank values."""
    together = _of_one_decoder(builder, choice.mask, choice.on_true, choice.on_false)
    if together is not None:
        return Carried(together)
    one = gated(builder, node, choice.on_true, choice.mask, masking=True)
    other = gated(builder, node, choice.on_false, _opposite(builder, choice.mask), masking=True)
    if not isinstance(one, Carried) or not isinstance(other, Carried):
        return other if isinstance(one, Carried) else one
    return added(builder, node, one.value, other.value)  # type: ignore[arg-type]


def _of_one(builder: CodeBuilder, node: Node, choice: _Choice) -> Outcome:
    """A choice between a low-rank value and something else, which must be a constant along the features."""
    opposite = _opposite(builder, choice.mask)
    first = isinstance(choice.on_true, LowRankValue)
    value, filling = (choice.on_true, choice.on_false) if first else (choice.on_false, choice.on_true)
    kept, filled = (choice.mask, opposite) if first else (opposite, choice.mask)
    outcome = gated(builder, node, value, kept, masking=True)
    if not isinstance(outcome, Carried) or not isinstance(outcome.value, LowRankValue):
        return outcome
    return _filled(builder, outcome.value, filled, filling)


def _opposite(builder: CodeBuilder, mask: Node) -> Node:
    return builder.emit(aten.logical_not.default, mask)


def _value(values: Values, side: Any) -> Any:
    return values.get(side) if isinstance(side, Node) else None


def _of_one_decoder(builder: CodeBuilder, mask: Node, one: LowRankValue, other: LowRankValue) -> LowRankValue | None:
    """One choice between two codes with the same decoder; None where they differ or the mask is per field."""
    alike = list(one.blocks) if len(one.blocks) == len(other.blocks) else []
    same = alike and all(
        left.decodes_like(right) and left.columns == right.columns and left.unit is None and right.unit is None
        for left, right in zip(one.blocks, other.blocks, strict=True)
    )
    mask = narrowed(builder, mask, len(one.trailing))
    tail = tuple(value_of(mask).shape)[-len(one.trailing) :]
    if not same or len(one.lead) != len(other.lead) or width_of(one.code) != width_of(other.code):
        return None
    if any(str(size) != "1" for size in tail):
        return None
    column = per_lead(builder, one, mask)
    return replace(one, code=builder.emit(aten.where.self, column, one.code, other.code))


def _filled(builder: CodeBuilder, value: LowRankValue, mask: Node, filling: Any) -> Outcome:
    """Adds a constant along the features where the mask is set: ``y + c u`` with the mask as units."""
    number = _number(filling)
    vector = along_features(builder, value, filling if number is None else number)
    if vector is None:
        return Restored(DENSE)
    if not _is_finite(builder, filling):
        return Restored(INFINITE)
    if number == 0.0:
        return Carried(value)
    mask = narrowed(builder, mask, len(value.trailing))
    shape = tuple(value_of(mask).shape)
    tail = shape[max(len(shape) - len(value.trailing), 0) :]
    if not static(tail):
        return Restored(VARIES, Law.INTERACTION)
    which = per_feature(value, (1,) * (len(value.trailing) - len(tail)) + tail)
    blocks = cut_at_changes(value.blocks, which)
    if blocks is None:
        return Restored(VARIES, Law.INTERACTION)
    value = units_as_columns(builder, replace(value, blocks=tuple(blocks)))
    numbers = sorted(set(which.tolist()))
    flat = in_dtype(builder, mask, value)
    if tail:
        flat = columns_of(builder, flat_gate(builder, flat, len(tail)), numbers)
    filled, first = list[Block](), 0
    for block in value.blocks:
        key = ("fill", filling, first, block.width)
        decoder = block.decoder.with_gated(vector[first : first + block.width], key)
        filled.append(replace(block, decoder=decoder, unit=numbers.index(int(which[first]))))
        first += block.width
    return Carried(replace(value, blocks=tuple(filled), units=with_lead(builder, value, flat)))


def _number(filling: Any) -> float | None:
    """The number that fills, where it is one number and known from the graph alone."""
    if isinstance(filling, (int, float)):
        return float(filling)
    while isinstance(filling, Node) and filling.target in _COPIES:
        filling = filling.args[0]
    if not isinstance(filling, Node):
        return None
    if filling.target in (aten.full.default, aten.full_like.default):
        return float(filling.args[1]) if isinstance(filling.args[1], (int, float)) else None
    return _FILLED.get(filling.target)


def _is_finite(builder: CodeBuilder, filling: Any) -> bool:
    """Whether a filling is known to be finite; in a dry run, too, the data of constants is looked at."""
    number = _number(filling)
    if number is not None:
        return math.isfinite(number)
    while isinstance(filling, Node) and filling.target in _COPIES:
        filling = filling.args[0]
    tensor = known_numbers(builder, filling)
    if tensor is None:
        return False
    with unset_fake_temporarily():
        return bool(torch.isfinite(tensor).all())


LAWS: dict[Any, Rule] = {
    **dict.fromkeys((aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf), where),
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), masked_fill),
}
