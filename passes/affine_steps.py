"""LINEAR: small operators that are scalings and sums of features under one name.

Replaces ``-y`` with ``A (-z) - o``, ``lerp(y, y', w)`` with ``(1 - w) y + w y'``, ``addcmul(y, a, b)`` with
``y + v a b``, and a cumulative sum along a leading axis with that of the code and of the offset's 1.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.common_form import through_lead
from passes.gates import gated, in_dtype, scaled
from passes.graph_tools import aten, value_of
from passes.low_rank_value import LowRankValue
from passes.moves import OTHER_DTYPE, single
from passes.need_features import MULTIPLIES
from passes.outcomes import Carried, Law, Outcome, Restored, Values
from passes.sums import MIXED, shifted, total

ALONG_FEATURES = "it adds features of a code up one after the other"


def negate(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``neg``."""
    value = single(node, values)
    return Restored(OTHER_DTYPE) if value is None else Carried(scaled(builder, value, -1.0))


def lerp(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``lerp`` with a number as weight."""
    start, end, weight = node.args
    if not isinstance(weight, (int, float)):
        return Restored(MULTIPLIES, Law.INTERACTION)
    return _weighted(builder, node, values, (start, 1.0 - weight), (end, float(weight)))


def _weighted(
    builder: CodeBuilder, node: Node, values: Values, one: tuple[Any, float], other: tuple[Any, float]
) -> Outcome:
    """A sum with two numbers as weights."""
    left, right = values.get(one[0]), values.get(other[0])
    if isinstance(left, LowRankValue) and isinstance(right, LowRankValue):
        return total(builder, node, scaled(builder, left, one[1]), scaled(builder, right, other[1]))
    if isinstance(left, LowRankValue):
        return shifted(builder, node, scaled(builder, left, one[1]), *other)
    if isinstance(right, LowRankValue):
        return shifted(builder, node, scaled(builder, right, other[1]), *one)
    return Restored(MIXED)


def add_product(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``addcmul``: ``y + v a b`` where one factor is a gate."""
    return _plus_gated(builder, node, values, quotient=False)


def add_quotient(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``addcdiv``: ``y + v a / b`` where the divisor is a gate."""
    return _plus_gated(builder, node, values, quotient=True)


def _plus_gated(builder: CodeBuilder, node: Node, values: Values, *, quotient: bool) -> Outcome:
    summand, one, other = node.args[:3]
    factor = float(node.kwargs.get("value", 1))  # type: ignore[arg-type]
    if not isinstance(one, Node) or not isinstance(other, Node) or (one in values) == (other in values):
        return Restored(MULTIPLIES, Law.INTERACTION)
    source, gate = (one, other) if one in values else (other, one)
    value = values[source]
    if not isinstance(value, LowRankValue) or (quotient and source is other):
        return Restored("it divides by features, which a code does not follow", Law.INTERACTION)
    if quotient:
        gate = in_dtype(builder, gate, value)
        gate = builder.emit(aten.reciprocal.default, gate)
    outcome = gated(builder, node, value, gate)
    if not isinstance(outcome, Carried) or not isinstance(outcome.value, LowRankValue):
        return outcome
    product = outcome.value if factor == 1 else scaled(builder, outcome.value, factor)
    addend = values.get(summand) if isinstance(summand, Node) else None
    if isinstance(addend, LowRankValue):
        return total(builder, node, addend, product)
    return shifted(builder, node, product, summand, 1.0)


def cumulate(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``cumsum`` along a leading axis."""
    value, axis = single(node, values), node.args[1]
    if value is None or not isinstance(axis, int) or value_of(node).dtype != value_of(value.code).dtype:
        return Restored(OTHER_DTYPE)
    if axis % len(value.shape) >= len(value.lead):
        pushed = builder.push(value)
        if pushed is None or axis % len(value.shape) >= len(pushed.lead):
            return Restored(ALONG_FEATURES)
        value = pushed
    place = axis % len(value.shape)
    return Carried(through_lead(builder, value, lambda code: builder.emit(aten.cumsum.default, code, place)))


LAWS = {
    aten.neg.default: negate,
    aten.lerp.Scalar: lerp,
    aten.addcmul.default: add_product,
    aten.addcdiv.default: add_quotient,
    aten.cumsum.default: cumulate,
}
