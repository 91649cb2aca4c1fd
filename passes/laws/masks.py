"""GATE: masks that choose between features and zero, or between features and features.

Replaces ``where(m, y, 0)`` with ``A where(m, z, 0) + o where(m, 1, 0)``, and ``where(m, y, y')`` with
``where(m, y, 0) + where(m, 0, y')``. ``masked_fill(y, m, 0)`` is ``where(m, 0, y)``.
"""

from __future__ import annotations

from typing import Any

from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node

from passes.codes import CodeBuilder, LowRankValue
from passes.graph import MOVES, aten
from passes.laws.common_form import spread
from passes.laws.gates import gated
from passes.laws.moves import UNKNOWN_SIZES, known_numbers
from passes.laws.outcomes import Carried, Law, Outcome, Restored, Rule, Values
from passes.laws.sums import added

DENSE = "it writes dense features or a number other than zero over features that are written in a code"
BY_FEATURES = "its mask is computed from the features themselves"

_COPIES = MOVES | {aten._to_copy.default}
"""Operators whose result holds only numbers of their first operand."""


def where(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``where`` of a mask and two tensors, of which one may be zero."""
    mask, kept, other = node.args
    return _chosen(builder, node, values, mask, (kept, other))


def masked_fill(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``masked_fill`` with zero: ``where`` with zero where the mask is set."""
    source, mask, filling = node.args
    return _chosen(builder, node, values, mask, (filling, source))


def _chosen(builder: CodeBuilder, node: Node, values: Values, mask: Any, sides: tuple[Any, Any]) -> Outcome:
    if not isinstance(mask, Node) or mask in values:
        return Restored(BY_FEATURES, Law.NONLINEAR)
    found = [values.get(side) if isinstance(side, Node) else None for side in sides]
    sources = [mask, *(value.code for value in found if isinstance(value, LowRankValue))]
    total: LowRankValue | None = None
    for side, value, is_kept in zip(sides, found, (True, False), strict=True):
        if not isinstance(value, LowRankValue):
            if not _is_zero(builder, side):
                return Restored(DENSE)
            continue
        ready = spread(builder, node, value, sources)
        if ready is None:
            return Restored(UNKNOWN_SIZES)
        keeps = mask if is_kept else builder.emit(aten.logical_not.default, mask)
        outcome = gated(builder, node, ready, keeps, masking=True)
        if not isinstance(outcome, Carried) or not isinstance(outcome.value, LowRankValue):
            return outcome
        if total is not None:
            return added(builder, node, total, outcome.value)
        total = outcome.value
    return Restored(DENSE) if total is None else Carried(total)


def _is_zero(builder: CodeBuilder, filling: Any) -> bool:
    """Whether all that is written is known to be zero; in a dry run, too, the data of constants is looked at."""
    while isinstance(filling, Node) and filling.target in _COPIES:
        filling = filling.args[0]
    if isinstance(filling, Node) and filling.target in (aten.full.default, aten.full_like.default):
        filling = filling.args[1]
    if not isinstance(filling, Node):
        return isinstance(filling, (int, float)) and filling == 0
    if filling.target in (aten.zeros.default, aten.zeros_like.default):
        return True
    tensor = known_numbers(builder, filling)
    with unset_fake_temporarily():
        return tensor is not None and not bool(tensor.any())


LAWS: dict[Any, Rule] = {
    **dict.fromkeys((aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf), where),
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), masked_fill),
}
