"""MOVE: operators that move features about without mixing them.

Replaces ``move(A z + o)`` with ``A' (move' z) + o'``: on leading axes the operator itself is applied to the code; on
feature axes it is applied to the features' positions, which tells the code columns to pick and the new blocks
(:func:`passes.low_rank_value.move_blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.graph_tools import aten, value_of
from passes.low_rank_value import LowRankValue, move_blocks
from passes.outcomes import Carried, Outcome, Restored, Values

RULE = "move"
Positions = np.ndarray[Any, Any]

TORN = "it takes the features of one code apart and strews them, so that each part would need the whole code"
MIXED_AXES = "it moves feature axes in front of batch axes"
UNKNOWN_SIZES = "a size on its way is not known before the model runs"
NO_FEATURE_AXIS = "it takes a single feature out of a code"


def _single(node: Node, values: Values) -> LowRankValue | None:
    value = values.get(node.args[0]) if isinstance(node.args[0], Node) else None
    return value if isinstance(value, LowRankValue) else None


def _argument(node: Node, position: int, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else default


def _on_features(
    builder: CodeBuilder, node: Node, value: LowRankValue, move: Callable[[Positions], Positions]
) -> LowRankValue | Restored:
    """Applies a move to the feature axes."""
    moved = move(np.arange(value.features).reshape(value.trailing))
    if moved.ndim == 0:
        return Restored(NO_FEATURE_AXIS)
    result = move_blocks(value.blocks, moved)
    if result is None:
        return Restored(TORN)
    return builder.pick(value, result, tuple(moved.shape), rule=RULE, like=node)


def _carried(value: LowRankValue | Restored | None) -> Outcome:
    if value is None:
        return Restored(UNKNOWN_SIZES)
    return value if isinstance(value, Restored) else Carried(value)


def _with_code(value: LowRankValue, code: Node, axes: int | None = None) -> LowRankValue:
    """The value with another code, whose leading axes became the value's."""
    lead = tuple(value_of(code).shape)[:-1]
    return LowRankValue(code, lead, value.trailing, value.blocks)


def same(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``clone``, ``contiguous``, ``dropout`` in eval: the value itself."""
    value = _single(node, values)
    if value is None or value_of(node).dtype != value_of(value.code).dtype:
        return Restored("it changes the number format")
    return Carried(value)


def view(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``view``, ``reshape``: another split into leading and feature axes."""
    value = _single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    shape = tuple(value_of(node).shape)
    for kept in range(len(value.lead), -1, -1):
        if len(shape) <= kept or not _equal(shape[:kept], value.lead[:kept]):
            continue
        tail, pulled = shape[kept:], value.lead[kept:]
        if not _static(tail) or not _static(pulled):
            continue
        if math.prod(tail) == math.prod(pulled) * value.features:
            whole = builder.pull(value, len(pulled), rule=RULE, like=node)
            return _carried(whole and LowRankValue(whole.code, whole.lead, tuple(tail), whole.blocks))
    for kept in range(len(shape)):
        if _static(shape[kept:]) and math.prod(shape[kept:]) == value.features:
            sizes = [*list(node.args[1])[:kept], value.code_width]  # type: ignore[arg-type]
            code = builder.emit(aten.reshape.default, value.code, sizes, rule=RULE, like=node)
            return Carried(LowRankValue(code, shape[:kept], tuple(shape[kept:]), value.blocks))
    return Restored("its new shape cuts through the features of a code")


def slice_(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``slice`` along one axis."""
    value = _single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axis = _argument(node, 1, 0) % len(value.shape)
    first, end, step = _argument(node, 2, None), _argument(node, 3, None), _argument(node, 4, 1)
    inner = axis - len(value.lead)
    if inner < 0:
        code = builder.emit(aten.slice.Tensor, value.code, axis, *node.args[2:], rule=RULE, like=node)
        return Carried(_with_code(value, code))
    if any(isinstance(bound, Node) for bound in (first, end, step)):
        return Restored(UNKNOWN_SIZES)
    index = (slice(None),) * inner + (slice(first, end, step),)
    return _carried(_on_features(builder, node, value, lambda positions: positions[index]))


def select(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``select``: one position of one axis."""
    value = _single(node, values)
    index = node.args[2]
    if value is None or not isinstance(index, int):
        return Restored(UNKNOWN_SIZES)
    axis = _argument(node, 1, 0) % len(value.shape)
    inner = axis - len(value.lead)
    if inner < 0:
        return Carried(_with_code(value, builder.emit(aten.select.int, value.code, axis, index, rule=RULE, like=node)))
    return _carried(_on_features(builder, node, value, lambda positions: positions.take(index, axis=inner)))


def unsqueeze(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``unsqueeze``: a new axis of size 1 (a feature axis wherever it can be one: that costs nothing)."""
    value = _single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axis = _argument(node, 1, 0) % (len(value.shape) + 1)
    inner = axis - len(value.lead)
    if inner < 0:
        return Carried(_with_code(value, builder.emit(aten.unsqueeze.default, value.code, axis, rule=RULE, like=node)))
    trailing = (*value.trailing[:inner], 1, *value.trailing[inner:])
    return Carried(LowRankValue(value.code, value.lead, trailing, value.blocks))


def squeeze(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``squeeze`` of all, one or several axes of size 1."""
    value = _single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    given = _argument(node, 1, None)
    wanted = range(len(value.shape)) if given is None else [given] if isinstance(given, int) else list(given)
    axes = {axis % len(value.shape) for axis in wanted}
    dropped = [axis for axis in sorted(axes) if isinstance(value.shape[axis], int) and value.shape[axis] == 1]
    code = value.code
    for removed, axis in enumerate(axis for axis in dropped if axis < len(value.lead)):
        code = builder.emit(aten.squeeze.dim, code, axis - removed, rule=RULE, like=node)
    lead = tuple(size for axis, size in enumerate(value.lead) if axis not in dropped)
    trailing = tuple(size for axis, size in enumerate(value.trailing, len(value.lead)) if axis not in dropped)
    if not trailing:
        return Restored(NO_FEATURE_AXIS)
    return Carried(LowRankValue(code, lead, trailing, value.blocks))


def permute(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``permute``, ``transpose``, ``t``."""
    value = _single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axes, lead = _axis_order(node, len(value.shape)), len(value.lead)
    pulled = max((lead - axis for axis in range(lead) if axes.index(axis) >= lead or axes[axis] >= lead), default=0)
    whole = builder.pull(value, pulled, rule=RULE, like=node)
    if whole is None:
        return Restored(MIXED_AXES)
    lead -= pulled
    if any(axis >= lead for axis in axes[:lead]):
        return Restored(MIXED_AXES)
    order = [axis - lead for axis in axes[lead:]]
    moved = _on_features(builder, node, whole, lambda positions: positions.transpose(order))
    if isinstance(moved, Restored):
        return moved
    if axes[:lead] == list(range(lead)):
        return Carried(moved)
    code = builder.emit(aten.permute.default, moved.code, [*axes[:lead], lead], rule=RULE, like=node)
    return Carried(_with_code(moved, code))


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
    value = _single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    shape, new = tuple(value_of(node).shape), len(value_of(node).shape) - len(value.shape)
    trailing = shape[new + len(value.lead) :]
    if not _static(trailing):
        return Restored(UNKNOWN_SIZES)
    moved = _on_features(builder, node, value, lambda positions: np.broadcast_to(positions, trailing))
    if isinstance(moved, Restored) or _equal(shape[: new + len(value.lead)], value.lead):
        return _carried(moved)
    sizes = [*list(node.args[1])[: new + len(value.lead)], -1]  # type: ignore[arg-type]
    return Carried(_with_code(moved, builder.emit(aten.expand.default, moved.code, sizes, rule=RULE, like=node)))


def concatenate(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``cat``: codes side by side, dense pieces as their own code."""
    operands: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    return _joined(builder, node, operands, _argument(node, 1, 0) % len(value_of(node).shape), values)


def stack(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``stack``: ``cat`` along a new axis."""
    operands: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    axis = _argument(node, 1, 0) % len(value_of(node).shape)
    return _joined(builder, node, operands, axis, values, new_axis=True)


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
        pulled = value
        if len(value.lead) > lead:
            held = LowRankValue(value.code, value.lead[:lead], (*value.lead[lead:], *value.trailing), value.blocks)
            pulled = held if ones else builder.pull(value, len(value.lead) - lead, rule=RULE, like=node)  # type: ignore[assignment]
        if pulled is None:
            return Restored(UNKNOWN_SIZES)
        trailing = pulled.trailing
        if new_axis:
            trailing = (*trailing[: axis - lead], 1, *trailing[axis - lead :])
        pieces.append(LowRankValue(pulled.code, pulled.lead, trailing, pulled.blocks))
    return _carried(_side_by_side(builder, node, pieces, axis - lead, ones))


def _common_ones(known: Sequence[LowRankValue], lead: int) -> int:
    """How many axes after the first ``lead`` ones are leading axes of size 1 in every value, and the last ones."""
    beyond = {tuple(str(size) for size in value.lead[lead:]) for value in known}
    only = beyond.pop() if len(beyond) == 1 else ()
    return len(only) if all(size == "1" for size in only) else 0


def _side_by_side(
    builder: CodeBuilder, node: Node, pieces: list[LowRankValue], inner: int, ones: int
) -> LowRankValue | Restored:
    """Joins pieces along feature axis ``inner``; their codes still have ``ones`` axes of size 1 before the last."""
    lead = pieces[0].lead
    held = (*lead, *(1 for _ in range(ones)))
    codes = [
        builder.view(piece.code, lead, node, *held[len(lead) :], piece.code_width, rule=RULE)
        if piece.blocks[0].is_identity
        else piece.code
        for piece in pieces
    ]
    code = codes[0] if len(codes) == 1 else builder.emit(aten.cat.default, codes, len(held), rule=RULE, like=node)
    code = builder.view(code, lead, node, sum(piece.code_width for piece in pieces), rule=RULE)
    blocks = tuple(block for piece in pieces for block in piece.blocks)
    features = sum(piece.features for piece in pieces)
    starts = np.cumsum([0, *(piece.features for piece in pieces)])
    positions = [
        np.arange(start, start + piece.features).reshape(piece.trailing)
        for start, piece in zip(starts[:-1], pieces, strict=True)
    ]
    joined = np.concatenate(positions, axis=inner)
    move = move_blocks(blocks, joined)
    if move is None:
        return Restored(TORN)
    return builder.pick(LowRankValue(code, lead, (features,), blocks), move, tuple(joined.shape), rule=RULE, like=node)


def split(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``split``, ``split_with_sizes``, ``chunk``, ``unbind``: several slices or selections at once."""
    value = _single(node, values)
    parts = value_of(node)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    drops_axis = node.target is aten.unbind.int
    axis = _argument(node, 1 if drops_axis else 2, 0) % len(value.shape)
    sizes = [1 if drops_axis else part.shape[axis] for part in parts]
    if not _static(sizes):
        return Restored(UNKNOWN_SIZES)
    inner, results, first = axis - len(value.lead), [], 0
    for size in sizes:
        index = (slice(None),) * max(inner, 0) + (first if drops_axis else slice(first, first + size),)
        if inner < 0:
            arguments = (axis, first) if drops_axis else (axis, first, first + size)
            target = aten.select.int if drops_axis else aten.slice.Tensor
            part: LowRankValue | Restored = _with_code(
                value, builder.emit(target, value.code, *arguments, rule=RULE, like=node)
            )
        else:
            part = _on_features(builder, node, value, lambda positions, index=index: positions[index])  # type: ignore[misc]
        if isinstance(part, Restored):
            return part
        results.append(part)
        first += size
    return Carried(tuple(results))


def get_item(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """An element of a tuple of values."""
    source, index = node.args
    parts = values.get(source) if isinstance(source, Node) else None
    if not isinstance(parts, tuple) or not isinstance(index, int):
        return Restored(UNKNOWN_SIZES)
    return Carried(parts[index])


def _static(sizes: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _equal(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two runs of sizes are the same without asking a symbol for its value."""
    return len(left) == len(right) and all(str(one) == str(other) for one, other in zip(left, right, strict=True))
