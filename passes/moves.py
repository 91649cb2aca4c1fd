"""MOVE: operators that move features about without mixing them.

Replaces ``move(A z + o)`` with ``A' (move' z) + o'``: on leading axes the operator itself is applied to the code; on
feature axes it is applied to the features' positions, which tells the new blocks
(:func:`passes.low_rank_value.move_blocks`) and needs no node.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from passes.code_builder import CodeBuilder, width_of
from passes.graph_tools import aten, value_of
from passes.low_rank_value import LowRankValue, move_blocks
from passes.outcomes import Carried, Outcome, Restored, Values

RULE = "move"
Positions = np.ndarray[Any, Any]

TORN = "it takes the features of one code apart and strews them, so that each part would need the whole code"
MIXED_AXES = "it moves feature axes in front of batch axes"
UNKNOWN_SIZES = "a size on its way is not known before the model runs"
NO_FEATURE_AXIS = "it takes a single feature out of a code"
OTHER_DTYPE = "it changes the number format"


def single(node: Node, values: Values) -> LowRankValue | None:
    """The low-rank first operand of a node."""
    value = values.get(node.args[0]) if isinstance(node.args[0], Node) else None
    return value if isinstance(value, LowRankValue) else None


def argument(node: Node, position: int, default: Any) -> Any:
    """A positional argument or its default."""
    return node.args[position] if len(node.args) > position else default


def reduced_axes(node: Node, rank: int) -> list[int]:
    """The axes that a reduction of a tensor with ``rank`` axes runs over, ascending; all where it names none."""
    given = argument(node, 1, None)
    return sorted({axis % rank for axis in ([given] if isinstance(given, int) else given or range(rank))})


def keeps_axes(node: Node) -> bool:
    """Whether a reduction leaves its axes behind as ones."""
    return bool(argument(node, 2, node.kwargs.get("keepdim", False)))


def on_features(value: LowRankValue, move: Callable[[Positions], Positions]) -> LowRankValue | Restored:
    """Applies a move to the feature axes."""
    moved = move(np.arange(value.features).reshape(value.trailing))
    if moved.ndim == 0:
        return Restored(NO_FEATURE_AXIS)
    blocks = move_blocks(value.blocks, moved)
    return Restored(TORN) if blocks is None else value.with_blocks(blocks, tuple(moved.shape))


def carried(value: LowRankValue | Restored | None) -> Outcome:
    """The outcome of a move."""
    if value is None:
        return Restored(UNKNOWN_SIZES)
    return value if isinstance(value, Restored) else Carried(value)


def same(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``clone``, ``contiguous``, ``dropout`` in eval: the value itself."""
    value = single(node, values)
    if value is None or value_of(node).dtype != value_of(value.code).dtype:
        return Restored(OTHER_DTYPE)
    return Carried(value)


def view(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``view``, ``reshape``: another split into leading and feature axes."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    shape = tuple(value_of(node).shape)
    for kept in range(len(value.lead), -1, -1):
        if len(shape) <= kept or not equal_sizes(shape[:kept], value.lead[:kept]):
            continue
        tail, pulled = shape[kept:], value.lead[kept:]
        if static(tail) and static(pulled) and math.prod(tail) == math.prod(pulled) * value.features:
            whole = builder.pull(value, len(pulled), rule=RULE, like=node)
            return carried(whole and replace(whole, trailing=tuple(tail)))
    for kept in range(len(shape)):
        if static(shape[kept:]) and math.prod(shape[kept:]) == value.features:
            sizes = list(node.args[1])[:kept]  # type: ignore[arg-type]
            return Carried(replace(_as_lead(builder, node, value, sizes), trailing=tuple(shape[kept:])))
    return Restored("its new shape cuts through the features of a code")


def _as_lead(builder: CodeBuilder, node: Node, value: LowRankValue, sizes: list[Any]) -> LowRankValue:
    """The value with its leading axes split or merged to the given sizes."""

    def reshaped(code: Node) -> Node:
        return builder.emit(aten.reshape.default, code, [*sizes, width_of(code)], rule=RULE, like=node)

    return builder.on_lead(value, reshaped)


def slice_(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``slice`` along one axis."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axis = argument(node, 1, 0) % len(value.shape)
    first, end, step = argument(node, 2, None), argument(node, 3, None), argument(node, 4, 1)
    inner = axis - len(value.lead)
    if inner < 0:
        return Carried(_on_lead(builder, node, value, aten.slice.Tensor, axis, *node.args[2:]))
    if any(isinstance(bound, Node) for bound in (first, end, step)):
        return Restored(UNKNOWN_SIZES)
    index = (slice(None),) * inner + (slice(first, end, step),)
    return carried(on_features(value, lambda positions: positions[index]))


def _on_lead(builder: CodeBuilder, node: Node, value: LowRankValue, target: Any, *arguments: Any) -> LowRankValue:
    return builder.on_lead(value, lambda code: builder.emit(target, code, *arguments, rule=RULE, like=node))


def select(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``select``: one position of one axis."""
    value, index = single(node, values), node.args[2]
    if value is None or not isinstance(index, int):
        return Restored(UNKNOWN_SIZES)
    axis = argument(node, 1, 0) % len(value.shape)
    inner = axis - len(value.lead)
    if inner < 0:
        return Carried(_on_lead(builder, node, value, aten.select.int, axis, index))
    return carried(on_features(value, lambda positions: positions.take(index, axis=inner)))


def unsqueeze(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``unsqueeze``: a new axis of size 1 (a feature axis wherever it can be one: that costs nothing)."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axis = argument(node, 1, 0) % (len(value.shape) + 1)
    inner = axis - len(value.lead)
    if inner < 0:
        return Carried(_on_lead(builder, node, value, aten.unsqueeze.default, axis))
    return Carried(replace(value, trailing=(*value.trailing[:inner], 1, *value.trailing[inner:])))


def squeeze(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``squeeze`` of all, one or several axes of size 1."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    given = argument(node, 1, None)
    wanted = range(len(value.shape)) if given is None else [given] if isinstance(given, int) else list(given)
    axes = {axis % len(value.shape) for axis in wanted}
    dropped = [axis for axis in sorted(axes) if isinstance(value.shape[axis], int) and value.shape[axis] == 1]
    trailing = tuple(size for axis, size in enumerate(value.trailing, len(value.lead)) if axis not in dropped)
    if not trailing:
        return Restored(NO_FEATURE_AXIS)
    for removed, axis in enumerate(axis for axis in dropped if axis < len(value.lead)):
        value = _on_lead(builder, node, value, aten.squeeze.dim, axis - removed)
    return Carried(replace(value, trailing=trailing))


def permute(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``permute``, ``transpose``, ``t``."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axes, lead = _axis_order(node, len(value.shape)), len(value.lead)
    pulled = max((lead - axis for axis in range(lead) if axes.index(axis) >= lead or axes[axis] >= lead), default=0)
    whole = builder.pull(value, pulled, rule=RULE, like=node)
    lead -= pulled
    if whole is None or any(axis >= lead for axis in axes[:lead]):
        return Restored(MIXED_AXES)
    order = [axis - lead for axis in axes[lead:]]
    moved = on_features(whole, lambda positions: positions.transpose(order))
    if isinstance(moved, Restored):
        return moved
    if axes[:lead] == list(range(lead)):
        return Carried(moved)
    return Carried(_on_lead(builder, node, moved, aten.permute.default, [*axes[:lead], lead]))


def _axis_order(node: Node, rank: int) -> list[int]:
    axes = list(range(rank))
    if node.target is aten.permute.default:
        return [int(axis) % rank for axis in node.args[1]]  # type: ignore[union-attr, arg-type]
    one, other = (-1, -2) if node.target is aten.t.default else (node.args[1], node.args[2])
    if rank >= 2:
        axes[one], axes[other] = axes[other], axes[one]  # type: ignore[index]
    return axes


def expand(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``expand``: repeats axes of size 1, adds axes in front."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    shape, new = tuple(value_of(node).shape), len(value_of(node).shape) - len(value.shape)
    lead, trailing = shape[: new + len(value.lead)], shape[new + len(value.lead) :]
    if not static(trailing):
        return Restored(UNKNOWN_SIZES)
    moved = on_features(value, lambda positions: np.broadcast_to(positions, trailing))
    if isinstance(moved, Restored) or equal_sizes(lead, value.lead):
        return carried(moved)
    sizes = [*list(node.args[1])[: len(lead)], -1]  # type: ignore[arg-type]
    return Carried(_on_lead(builder, node, moved, aten.expand.default, sizes))


def repeat(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``repeat``: tiles axes, adds axes in front."""
    value = single(node, values)
    times = node.args[1]
    if value is None or not isinstance(times, (list, tuple)):
        return Restored(UNKNOWN_SIZES)
    return repeated(builder, node, value, times)


def repeated(builder: CodeBuilder, node: Node, value: LowRankValue, times: Sequence[Any]) -> Outcome:
    """The value tiled, with a count for each of its axes and for new ones in front."""
    count = len(times) - len(value.trailing)
    lead_times, feature_times = list(times[:count]), times[count:]
    if count < len(value.lead) or any(isinstance(time, Node) for time in feature_times):
        return Restored(UNKNOWN_SIZES)
    moved = on_features(value, lambda positions: np.tile(positions, feature_times))
    if isinstance(moved, Restored) or (count == len(value.lead) and all(time == 1 for time in lead_times)):
        return carried(moved)
    return Carried(_on_lead(builder, node, moved, aten.repeat.default, [*lead_times, 1]))


def concatenate(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``cat``: codes side by side, dense pieces as their own code."""
    operands: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    return _joined(builder, node, operands, argument(node, 1, 0) % len(value_of(node).shape), values)


def stack(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``stack``: ``cat`` along a new axis."""
    operands: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    axis = argument(node, 1, 0) % len(value_of(node).shape)
    known = [value for operand in operands if isinstance(value := values.get(operand), LowRankValue)]
    lead = min(len(value.lead) for value in known)
    if axis >= lead:
        return _joined(builder, node, operands, axis, values, new_axis=True)
    return Restored(MIXED_AXES)


def _joined(
    builder: CodeBuilder, node: Node, operands: Sequence[Node], axis: int, values: Values, *, new_axis: bool = False
) -> Outcome:
    """Joins values along a feature axis, after making all operands agree on their leading axes.

    A leading axis can be joined along only where every operand has the same decoder, which is why it is first made
    a feature axis.
    """
    known = [value for operand in operands if isinstance(value := values.get(operand), LowRankValue)]
    lead = min([*(len(value.lead) for value in known), axis])
    ones = _common_ones(known, lead)
    pieces = []
    for operand in operands:
        value = values.get(operand) or builder.dense(operand, len(value_of(operand).shape) - lead)
        if not isinstance(value, LowRankValue):
            return Restored(UNKNOWN_SIZES)
        piece = _with_lead(builder, node, value, lead, keep_ones=ones > 0)
        if piece is None:
            return Restored(UNKNOWN_SIZES)
        if new_axis:
            trailing = (*piece.trailing[: axis - lead], 1, *piece.trailing[axis - lead :])
            piece = replace(piece, trailing=trailing)
        pieces.append(piece)
    return carried(_side_by_side(builder, node, pieces, axis - lead, ones))


def _with_lead(
    builder: CodeBuilder, node: Node, value: LowRankValue, lead: int, *, keep_ones: bool
) -> LowRankValue | None:
    """The value with fewer leading axes; with ``keep_ones``, its code keeps the others, which are all 1."""
    beyond = len(value.lead) - lead
    if beyond and keep_ones:
        return replace(value, lead=value.lead[:lead], trailing=(*value.lead[lead:], *value.trailing))
    return builder.pull(value, beyond, rule=RULE, like=node)


def _common_ones(known: Sequence[LowRankValue], lead: int) -> int:
    """How many leading axes of size 1 every value has after the first ``lead`` ones; 0 where they differ."""
    beyond = {tuple(str(size) for size in value.lead[lead:]) for value in known}
    only = beyond.pop() if len(beyond) == 1 else ()
    return len(only) if all(size == "1" for size in only) else 0


def _side_by_side(
    builder: CodeBuilder, node: Node, pieces: list[LowRankValue], inner: int, ones: int
) -> LowRankValue | Restored:
    """Joins pieces along feature axis ``inner``; their codes still have ``ones`` axes of size 1 before the last."""
    lead = pieces[0].lead
    held = tuple(1 for _ in range(ones))
    codes: dict[Node, tuple[int, Node]] = {}
    units: dict[Node, tuple[int, Node]] = {}
    blocks = []
    pieces = _sharing_codes(builder, node, pieces)
    no_code = not any(piece.has_code for piece in pieces)
    for piece in pieces:
        used = 1 + max((column for block in piece.blocks for column in block.columns), default=0)
        width = width_of(piece.code) if len(value_of(piece.code).shape) == len(lead) + ones + 1 else used
        first = 0
        if piece.has_code or no_code:  # constants need no code where there is another
            first = _place(codes, piece.code, width, builder.view(piece.code, lead, node, *held, width, rule=RULE))
        unit = 0
        if piece.units is not None:
            unit = _place(units, piece.units, width_of(piece.units), piece.units)
        blocks += [block.moved(first, unit) for block in piece.blocks]
    code = builder.beside([each for _, each in codes.values()], rule=RULE, like=node)
    code = builder.view(code, lead, node, width_of(code), rule=RULE)
    scale = None
    if units:
        scale = builder.beside([each for _, each in units.values()], rule=RULE, like=node)
        scale = builder.view(scale, lead, node, width_of(scale), rule=RULE)
    starts = itertools.accumulate((piece.features for piece in pieces), initial=0)
    positions = [
        np.arange(start, start + piece.features).reshape(piece.trailing)
        for start, piece in zip(starts, pieces, strict=False)
    ]
    whole = LowRankValue(code, lead, (sum(piece.features for piece in pieces),), tuple(blocks), scale)
    joined = np.concatenate(positions, axis=inner)
    moved = move_blocks(whole.blocks, joined)
    return Restored(TORN) if moved is None else whole.with_blocks(moved, tuple(joined.shape))


def _sharing_codes(builder: CodeBuilder, node: Node, pieces: Sequence[LowRankValue]) -> list[LowRankValue]:
    """The pieces, each without the code columns that it does not use, unless several read the same code."""
    readers = {piece.code: 0 for piece in pieces}
    for piece in pieces:
        readers[piece.code] += 1
    return [
        piece
        if readers[piece.code] > 1 or len(value_of(piece.code).shape) != len(piece.lead) + 1
        else builder.compact(piece, rule=RULE, like=node)
        for piece in pieces
    ]


def _place(places: dict[Node, tuple[int, Node]], node: Node, width: int, seen: Node) -> int:
    """The first column of a node among those to be concatenated, each once."""
    if node not in places:
        last = next(reversed(places.values()), None)
        places[node] = (0 if last is None else last[0] + width_of(last[1]), seen)
    return places[node][0]


def split(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``split``, ``split_with_sizes``, ``chunk``, ``unbind``: several slices or selections at once."""
    value = single(node, values)
    parts = value_of(node)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    drops_axis = node.target is aten.unbind.int
    axis = argument(node, 1 if drops_axis else 2, 0) % len(value.shape)
    sizes = [1 if drops_axis else part.shape[axis] for part in parts]
    if not static(sizes):
        return Restored(UNKNOWN_SIZES)
    inner, results, first = axis - len(value.lead), [], 0
    for size in sizes:
        index = (slice(None),) * max(inner, 0) + (first if drops_axis else slice(first, first + size),)
        if inner < 0:
            arguments = (axis, first) if drops_axis else (axis, first, first + size)
            target = aten.select.int if drops_axis else aten.slice.Tensor
            part: LowRankValue | Restored = _on_lead(builder, node, value, target, *arguments)
        else:
            part = on_features(value, lambda positions, index=index: positions[index])  # type: ignore[misc]
        if isinstance(part, Restored):
            return part
        results.append(part)
        first += size
    return Carried(tuple(results))


def get_item(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """An element of a tuple of values."""
    source, index = node.args
    parts = values.get(source) if isinstance(source, Node) else None
    if not isinstance(parts, tuple) or not isinstance(index, int) or index >= len(parts):
        return Restored(UNKNOWN_SIZES)
    return Carried(parts[index])


def static(sizes: Sequence[Any]) -> bool:
    """Whether all sizes are known numbers."""
    return all(isinstance(size, int) for size in sizes)


def equal_sizes(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two runs of sizes are the same without asking a symbol for its value."""
    return len(left) == len(right) and all(str(one) == str(other) for one, other in zip(left, right, strict=True))


def keeps_shape(node: Node, value: LowRankValue) -> bool:
    """Whether a node's result has the shape of its low-rank operand, so that nothing is repeated."""
    return equal_sizes(tuple(value_of(node).shape), value.shape)
