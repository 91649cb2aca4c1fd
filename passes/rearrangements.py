"""MOVE: more operators that move features about without mixing them: flips, rolls, picks by constant places, repeats.

As in :mod:`passes.moves`, replaces ``move(A z + o)`` with ``A' (move' z) + o'``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.graph_tools import aten, constant_of, value_of
from passes.low_rank_value import LowRankValue
from passes.moves import MIXED_AXES, TORN, UNKNOWN_SIZES, Positions, argument, carried, on_features, repeated, single
from passes.outcomes import Carried, Outcome, Restored, Values

RULE = "move"
BY_DATA = "which features it picks is not known before the model runs"
FLAT = "it moves features across all axes at once"

COPIES = frozenset(
    {
        aten.clone.default, aten.alias.default, aten.detach.default, aten._to_copy.default, aten.reshape.default,
        aten.expand.default, aten.unsqueeze.default, aten.lift_fresh_copy.default, aten.select.int, aten.slice.Tensor,
        aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.transpose.int,
    }
)  # fmt: skip
"""Operators whose result holds only numbers of their operand."""


def known_numbers(builder: CodeBuilder, node: Any) -> torch.Tensor | None:
    """The real numbers of a constant of the graph, in a dry run, too; None where the node is none or has no data."""
    tensor = constant_of(builder.module, node)
    return None if tensor is None or isinstance(tensor, FakeTensor) else tensor


def _along(
    builder: CodeBuilder, node: Node, value: LowRankValue, axis: int, move: Callable[[Positions, int], Positions]
) -> Outcome:
    """One axis: on a leading one the operator itself on the code, on a feature axis on the positions."""
    inner = axis % len(value.shape) - len(value.lead)
    if inner >= 0:
        return carried(on_features(value, lambda positions: move(positions, inner)))
    return Carried(_on_code(builder, node, value))


def _on_code(builder: CodeBuilder, node: Node, value: LowRankValue) -> LowRankValue:
    """The node's own operator on code and units."""
    rest = node.args[1:]
    return builder.on_lead(value, lambda code: builder.emit(node.target, code, *rest, rule=RULE, like=node))  # type: ignore[arg-type]


def flip(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``flip`` along some axes."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axes = [int(axis) % len(value.shape) for axis in node.args[1]]  # type: ignore[union-attr, arg-type]
    leading = [axis for axis in axes if axis < len(value.lead)]
    inner = [axis - len(value.lead) for axis in axes if axis >= len(value.lead)]
    if inner:
        moved = on_features(value, lambda positions: np.flip(positions, tuple(inner)))
        if isinstance(moved, Restored):
            return moved
        value = moved
    if leading:
        value = builder.on_lead(
            value, lambda code: builder.emit(aten.flip.default, code, leading, rule=RULE, like=node)
        )
    return Carried(value)


def roll(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``roll`` along one axis."""
    value = single(node, values)
    shifts, axes = list(node.args[1]), list(argument(node, 2, []))  # type: ignore[arg-type]
    if value is None or len(axes) != 1 or not isinstance(shifts[0], int):
        return Restored(FLAT)
    shift = int(shifts[0])
    return _along(builder, node, value, axes[0], lambda positions, axis: np.roll(positions, shift, axis))


def repeat_interleave(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``repeat_interleave`` by a number along one axis."""
    value, times, axis = single(node, values), node.args[1], argument(node, 2, None)
    if value is None or not isinstance(times, int) or not isinstance(axis, int):
        return Restored(FLAT if axis is None else UNKNOWN_SIZES)
    return _along(builder, node, value, axis, lambda positions, inner: np.repeat(positions, times, inner))


def tile(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``tile``: ``repeat`` whose missing counts are 1."""
    value, times = single(node, values), node.args[1]
    if value is None or not isinstance(times, (list, tuple)):
        return Restored(UNKNOWN_SIZES)
    ones = [1 for _ in range(len(value.shape) - len(times))]
    return repeated(builder, node, value, [*ones, *times])


def index_select(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``index_select`` by constant places, or by any along a leading axis."""
    value, axis, index = single(node, values), node.args[1], node.args[2]
    if value is None or not isinstance(axis, int) or index in values:
        return Restored(BY_DATA)
    return _picked(builder, node, value, axis, index)


def index(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``x[:, places]``: a pick along one axis by a list of places."""
    value, places = single(node, values), list(node.args[1])  # type: ignore[arg-type]
    given = [axis for axis, each in enumerate(places) if each is not None]
    if value is None or len(given) != 1 or places[given[0]] in values:
        return Restored(BY_DATA)
    indices = value_of(places[given[0]])
    if indices.dtype == torch.bool or (indices.dim() != 1 and given[0] >= len(value.lead)):
        return Restored(BY_DATA)
    return _picked(builder, node, value, given[0], places[given[0]])


def _picked(builder: CodeBuilder, node: Node, value: LowRankValue, axis: int, places: Any) -> Outcome:
    if axis % len(value.shape) < len(value.lead):
        return Carried(_on_code(builder, node, value))
    numbers = known_numbers(builder, places)
    if numbers is None:
        return Restored(BY_DATA)
    with unset_fake_temporarily():
        chosen = numbers.cpu().numpy()
    return _along(builder, node, value, axis, lambda positions, inner: np.take(positions, chosen, inner))


def unfold(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``unfold``: windows along a feature axis."""
    value, axis, size, step = single(node, values), *node.args[1:4]
    if value is None or not isinstance(axis, int) or not isinstance(size, int) or not isinstance(step, int):
        return Restored(UNKNOWN_SIZES)
    inner = axis % len(value.shape) - len(value.lead)
    if inner < 0:
        return Restored(MIXED_AXES)
    steps = (slice(None),) * inner + (slice(None, None, step),)
    moved = on_features(
        value, lambda positions: np.lib.stride_tricks.sliding_window_view(positions, size, inner)[steps]
    )
    return Restored(TORN) if isinstance(moved, Restored) else Carried(moved)


LAWS = {
    aten.flip.default: flip,
    aten.roll.default: roll,
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.tile.default: tile,
    aten.index_select.default: index_select,
    aten.index.Tensor: index,
    aten.unfold.default: unfold,
}
