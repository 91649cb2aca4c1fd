"""MOVE: operators that ask for the shape of features and for nothing else.

Replaces ``zeros_like(A z + o)`` with ``zeros_like(z)`` seen in the features' shape, ``size(A z + o, axis)`` with
``size(z, axis)``: no feature is looked at.
"""

from __future__ import annotations

from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.graph_tools import aten
from passes.moves import UNKNOWN_SIZES, single
from passes.outcomes import Absorbed, Outcome, Restored, Values

RULE = "shape"
SHAPE_ONLY = "it asks for the shape of the features only, so they are never built"


def filled_like(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``zeros_like``, ``ones_like``, ``full_like``."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    first = builder.pick(value.code, [0], rule=RULE, like=node)
    filled = builder.emit(node.target, first, *node.args[1:], rule=RULE, like=node, **node.kwargs)  # type: ignore[arg-type]
    shaped = builder.view(filled, value.lead, node, *(1 for _ in value.trailing), rule=RULE)
    sizes = [*(-1 for _ in value.lead), *value.trailing]
    return Absorbed(builder.emit(aten.expand.default, shaped, sizes, rule=RULE, like=node), SHAPE_ONLY)


def size(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``sym_size`` of one axis."""
    value, axis = single(node, values), node.args[1]
    if value is None or not isinstance(axis, int) or not -len(value.shape) <= axis < len(value.shape):
        return Restored(UNKNOWN_SIZES)
    axis %= len(value.shape)
    if axis >= len(value.lead):
        return Restored(UNKNOWN_SIZES)
    return Absorbed(builder.emit(aten.sym_size.int, value.code, axis, rule=RULE, like=node), SHAPE_ONLY)
