"""MOVE: operators that move features about without mixing them.

Replaces ``move(A z + o)`` with ``A' (move' z) + o'``. On leading axes the operator itself is applied to the code. On
feature axes it is run on the features' positions, with every leading axis 1: that tells where each feature goes, so no
operator's indexing is written down here (:func:`passes.codes.low_rank_value.move_blocks`), and needs no node.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx import Node

from passes.codes import CodeBuilder, LowRankValue, move_blocks, split_rows, width_of
from passes.graph import args_of, argument, aten, constant_of, run_on_positions, value_of
from passes.laws.outcomes import Absorbed, Carried, Outcome, Restored, Rule, Values

Positions = np.ndarray[Any, Any]

TORN = "it takes the features of one code apart and strews them, so that each part would need the whole code"
MIXED_AXES = "it moves feature axes in front of batch axes"
UNKNOWN_SIZES = "a size on its way is not known before the model runs"
NO_FEATURE_AXIS = "it takes a single feature out of a code"
OTHER_DTYPE = "it changes the number format"
BY_DATA = "which features it picks is not known before the model runs"
FLAT = "it moves features across all axes at once"
CUT = "its new shape cuts through the features of a code"
UNLIKE = "its new shape makes rows of fields whose decoders differ"
SHAPE_ONLY = "it asks for the shape of the features only, so they are never built"


def known_numbers(builder: CodeBuilder, node: Any) -> torch.Tensor | None:
    """The real numbers of a constant of the graph, in a dry run, too; None where the node is none or has no data."""
    tensor = constant_of(builder.module, node)
    return None if tensor is None or isinstance(tensor, FakeTensor) else tensor


def single(node: Node, values: Values) -> LowRankValue | None:
    """The low-rank first operand of a node."""
    value = values.get(node.args[0]) if isinstance(node.args[0], Node) else None
    return value if isinstance(value, LowRankValue) else None


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


_AXIS: dict[Any, int] = {
    aten.slice.Tensor: 1,
    aten.select.int: 1,
    aten.unsqueeze.default: 1,
    aten.flip.default: 1,
    aten.index_select.default: 1,
    aten.unfold.default: 1,
    aten.unbind.int: 1,
    aten.roll.default: 2,
    aten.repeat_interleave.self_int: 2,
    aten.split.Tensor: 2,
    aten.split_with_sizes.default: 2,
    aten.chunk.default: 2,
}
"""Which argument of an operator names the axis or axes that it moves along."""
_DEFAULT_AXIS: dict[Any, None] = {aten.roll.default: None, aten.repeat_interleave.self_int: None}


def _axes(node: Node, rank: int) -> list[int] | None:
    """The axes that a move works along; None where it does not keep them apart."""
    if node.target is aten.index.Tensor:
        given: Any = [axis for axis, places in enumerate(args_of(node)[1]) if places is not None]
    else:
        given = argument(node, _AXIS[node.target], _DEFAULT_AXIS.get(node.target, 0))
    if given is None or given == []:
        return None
    return [axis % rank for axis in ([given] if isinstance(given, int) else given)]


def along_axes(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """A move along some axes: on features it is run on their positions, on leading axes on the code."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    axes = _axes(node, len(value.shape) + (node.target is aten.unsqueeze.default))
    if axes is None or (len(axes) > 1 and node.target is not aten.flip.default):
        return Restored(FLAT)
    leading = [axis for axis in axes if axis < len(value.lead)]
    parts: list[LowRankValue | Restored] = [value]
    if len(leading) < len(axes):
        parts = _positions_moved(builder, node, value)
    if leading:
        if node.target is aten.unfold.default:
            return Restored(MIXED_AXES)
        parts = [moved for part in parts for moved in _code_moved(builder, node, part, leading)]
    torn = next((part for part in parts if isinstance(part, Restored)), None)
    if torn is not None:
        return torn
    several = isinstance(value_of(node), (list, tuple))
    return Carried(tuple(parts) if several else parts[0])  # type: ignore[arg-type]


def _positions_moved(builder: CodeBuilder, node: Node, value: LowRankValue) -> list[LowRankValue | Restored]:
    """The value, or its parts, whose features went where the operator takes their positions."""
    ones = [1 for _ in value.lead]
    positions = torch.arange(value.features).reshape(*ones, *value.trailing)
    with unset_fake_temporarily():
        moved = run_on_positions(node, lambda leaf: positions if leaf is node.args[0] else known_numbers(builder, leaf))
    if moved is None:
        return [Restored(BY_DATA)]
    results = moved if isinstance(moved, (list, tuple)) else [moved]
    return [on_features(value, lambda _, part=part: part[(0,) * len(ones)].numpy()) for part in results]  # type: ignore[misc]


def _code_moved(
    builder: CodeBuilder, node: Node, value: LowRankValue | Restored, axes: list[int]
) -> list[LowRankValue | Restored]:
    """The value, or its parts, after the operator itself moved code and units along leading axes."""
    if isinstance(value, Restored):
        return [value]
    arguments = list(node.args[1:])
    place = _AXIS.get(node.target, 0)
    if 0 < place < len(node.args):
        arguments[place - 1] = axes if isinstance(node.args[place], (list, tuple)) else axes[0]

    def move(code: Node) -> Node:
        return builder.emit(node.target, code, *arguments)

    several = value_of(node)
    if not isinstance(several, (list, tuple)):
        return [builder.on_lead(value, move)]
    code, units = move(value.code), None if value.units is None else move(value.units)
    parts: list[LowRankValue | Restored] = []
    for which in range(len(several)):
        taken = [builder.emit(operator.getitem, whole, which) for whole in (code, units) if whole is not None]
        lead = tuple(value_of(taken[0]).shape)[:-1]
        parts.append(replace(value, code=taken[0], units=taken[1] if len(taken) > 1 else None, lead=lead))
    return parts


def index(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``x[:, places]``, ``index_select``: a pick along one axis by constant places, or by any along a leading one."""
    value, picks = single(node, values), args_of(node)[1] if node.target is aten.index.Tensor else [args_of(node)[2]]
    places = [pick for pick in picks if pick is not None]
    if value is None or len(places) != 1 or places[0] in values or value_of(places[0]).dtype == torch.bool:
        return Restored(BY_DATA)
    axes = _axes(node, len(value.shape))
    if value_of(places[0]).dim() != 1 and (axes is None or axes[0] >= len(value.lead)):
        return Restored(BY_DATA)
    return along_axes(builder, node, values)


def squeeze(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``squeeze`` of all, one or several axes of size 1."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    given = argument(node, 1, None)
    named = range(len(value.shape)) if given is None else [given] if isinstance(given, int) else given
    axes = {axis % len(value.shape) for axis in named}
    dropped = [axis for axis in sorted(axes) if isinstance(value.shape[axis], int) and value.shape[axis] == 1]
    trailing = tuple(size for axis, size in enumerate(value.trailing, len(value.lead)) if axis not in dropped)
    if not trailing:
        return Restored(NO_FEATURE_AXIS)
    for removed, axis in enumerate(axis for axis in dropped if axis < len(value.lead)):
        value = _on_lead(builder, value, aten.squeeze.dim, axis - removed)
    return Carried(replace(value, trailing=trailing))


def _on_lead(builder: CodeBuilder, value: LowRankValue, target: Any, *arguments: Any) -> LowRankValue:
    return builder.on_lead(value, lambda code: builder.emit(target, code, *arguments))


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
            whole = builder.pull(value, len(pulled))
            return carried(whole and replace(whole, trailing=tuple(tail)))
    for kept in range(len(shape)):
        if static(shape[kept:]) and math.prod(shape[kept:]) == value.features:
            return _with_other_lead(builder, node, value, kept)
    return _as_rows(builder, node, value)


def _as_rows(builder: CodeBuilder, node: Node, value: LowRankValue) -> Outcome:
    """A view that makes outer feature axes part of the leading ones: ``[batch, rows, n]`` as ``[batch rows, n]``."""
    shape, reason = tuple(value_of(node).shape), CUT
    for kept in range(1, len(shape)):
        width = math.prod(shape[kept:]) if static(shape[kept:]) else 0
        if not width or value.features % width or split_rows(value.blocks, width) is None:
            continue
        rows = builder.push(replace(value, trailing=(value.features // width, width)))
        if rows is not None:
            return _with_other_lead(builder, node, rows, kept)
        reason = UNLIKE
    return Restored(reason)


def _with_other_lead(builder: CodeBuilder, node: Node, value: LowRankValue, kept: int) -> Carried:
    """The value of a view whose first ``kept`` axes are all that leads."""
    sizes = list(node.args[1])[:kept]  # type: ignore[arg-type]
    moved = builder.on_lead(value, lambda code: builder.emit(aten.reshape.default, code, [*sizes, width_of(code)]))
    return Carried(replace(moved, trailing=tuple(value_of(node).shape)[kept:]))


def permute(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``permute``, ``transpose``, ``t``."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    lead, labelled = len(value.lead), torch.empty(tuple(range(1, len(value.shape) + 1)), device="meta")
    axes = [size - 1 for size in run_on_positions(node, lambda _: labelled).shape]  # axis k has k + 1 entries
    pulled = max((lead - axis for axis in range(lead) if axes.index(axis) >= lead or axes[axis] >= lead), default=0)
    whole = builder.pull(value, pulled)
    lead -= pulled
    if whole is None or any(axis >= lead for axis in axes[:lead]):
        return Restored(MIXED_AXES)
    moved = on_features(whole, lambda positions: positions.transpose([axis - lead for axis in axes[lead:]]))
    if isinstance(moved, Restored) or axes[:lead] == list(range(lead)):
        return carried(moved)
    return Carried(_on_lead(builder, moved, aten.permute.default, [*axes[:lead], lead]))


def expand(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``expand``: repeats axes of size 1, adds axes in front."""
    value, shape = single(node, values), tuple(value_of(node).shape)
    if value is None or not static(shape[-len(value.trailing) :]):
        return Restored(UNKNOWN_SIZES)
    lead, trailing = shape[: -len(value.trailing)], shape[-len(value.trailing) :]
    moved = on_features(value, lambda positions: np.broadcast_to(positions, trailing))
    if isinstance(moved, Restored) or equal_sizes(lead, value.lead):
        return carried(moved)
    sizes = [*list(node.args[1])[: len(lead)], -1]  # type: ignore[arg-type]
    return Carried(_on_lead(builder, moved, aten.expand.default, sizes))


def repeat(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``repeat``, ``tile``: repeats whole axes, adds axes in front."""
    value, times = single(node, values), args_of(node)[1]
    if value is None or not isinstance(times, (list, tuple)):
        return Restored(UNKNOWN_SIZES)
    times = [*(1 for _ in range(len(value.shape) - len(times))), *times]  # those that a tile leaves out
    count = len(times) - len(value.trailing)
    lead_times, feature_times = times[:count], times[count:]
    if any(isinstance(time, Node) for time in feature_times):
        return Restored(UNKNOWN_SIZES)
    moved = on_features(value, lambda positions: np.tile(positions, feature_times))
    if isinstance(moved, Restored) or (count == len(value.lead) and all(time == 1 for time in lead_times)):
        return carried(moved)
    return Carried(_on_lead(builder, moved, aten.repeat.default, [*lead_times, 1]))


def filled_like(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``zeros_like``, ``ones_like``, ``full_like``: the same of a column of the code, seen in the features' shape."""
    value = single(node, values)
    if value is None:
        return Restored(UNKNOWN_SIZES)
    first = builder.pick(value.code, [0])
    filled = builder.emit(node.target, first, *node.args[1:], **node.kwargs)
    shaped = builder.view(filled, value.lead, *(1 for _ in value.trailing))
    sizes = [*(-1 for _ in value.lead), *value.trailing]
    return Absorbed(builder.emit(aten.expand.default, shaped, sizes), SHAPE_ONLY)


def size(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``sym_size`` of one axis: the code's."""
    value, axis = single(node, values), node.args[1]
    if value is None or not isinstance(axis, int) or axis % len(value.shape) >= len(value.lead):
        return Restored(UNKNOWN_SIZES)
    size_of_code = builder.emit(aten.sym_size.int, value.code, axis % len(value.shape))
    return Absorbed(size_of_code, SHAPE_ONLY)


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
        piece = _with_lead(builder, value, lead, keep_ones=ones > 0)
        if piece is None:
            return Restored(UNKNOWN_SIZES)
        if new_axis:
            trailing = (*piece.trailing[: axis - lead], 1, *piece.trailing[axis - lead :])
            piece = replace(piece, trailing=trailing)
        pieces.append(piece)
    return carried(_side_by_side(builder, pieces, axis - lead, ones))


def _with_lead(builder: CodeBuilder, value: LowRankValue, lead: int, *, keep_ones: bool) -> LowRankValue | None:
    """The value with fewer leading axes; with ``keep_ones``, its code keeps the others, which are all 1."""
    beyond = len(value.lead) - lead
    if beyond and keep_ones:
        return replace(value, lead=value.lead[:lead], trailing=(*value.lead[lead:], *value.trailing))
    return builder.pull(value, beyond)


def _common_ones(known: Sequence[LowRankValue], lead: int) -> int:
    """How many leading axes of size 1 every value has after the first ``lead`` ones; 0 where they differ."""
    beyond = {tuple(str(size) for size in value.lead[lead:]) for value in known}
    only = beyond.pop() if len(beyond) == 1 else ()
    return len(only) if all(size == "1" for size in only) else 0


def _side_by_side(builder: CodeBuilder, pieces: list[LowRankValue], inner: int, ones: int) -> LowRankValue | Restored:
    """Joins pieces along feature axis ``inner``; their codes still have ``ones`` axes of size 1 before the last."""
    lead = pieces[0].lead
    held = tuple(1 for _ in range(ones))
    codes: dict[Node, tuple[int, Node]] = {}
    units: dict[Node, tuple[int, Node]] = {}
    blocks = []
    pieces = _sharing_codes(builder, pieces)
    no_code = not any(piece.has_code for piece in pieces)
    for piece in pieces:
        used = 1 + max((column for block in piece.blocks for column in block.columns), default=0)
        width = width_of(piece.code) if len(value_of(piece.code).shape) == len(lead) + ones + 1 else used
        first = 0
        if piece.has_code or no_code:  # constants need no code where there is another
            first = _place(codes, piece.code, width, builder.view(piece.code, lead, *held, width))
        unit = 0
        if piece.units is not None:
            unit = _place(units, piece.units, width_of(piece.units), piece.units)
        blocks += [block.moved(first, unit) for block in piece.blocks]
    code = builder.beside([each for _, each in codes.values()])
    code = builder.view(code, lead, width_of(code))
    scale = None
    if units:
        scale = builder.beside([each for _, each in units.values()])
        scale = builder.view(scale, lead, width_of(scale))
    starts = itertools.accumulate((piece.features for piece in pieces), initial=0)
    positions = [
        np.arange(start, start + piece.features).reshape(piece.trailing)
        for start, piece in zip(starts, pieces, strict=False)
    ]
    whole = LowRankValue(code, lead, (sum(piece.features for piece in pieces),), tuple(blocks), scale)
    joined = np.concatenate(positions, axis=inner)
    moved = move_blocks(whole.blocks, joined)
    return Restored(TORN) if moved is None else whole.with_blocks(moved, tuple(joined.shape))


def _sharing_codes(builder: CodeBuilder, pieces: Sequence[LowRankValue]) -> list[LowRankValue]:
    """The pieces, each without the code columns that it does not use, unless several read the same code."""
    readers = {piece.code: 0 for piece in pieces}
    for piece in pieces:
        readers[piece.code] += 1
    return [
        piece
        if readers[piece.code] > 1 or len(value_of(piece.code).shape) != len(piece.lead) + 1
        else builder.compact(piece)
        for piece in pieces
    ]


def _place(places: dict[Node, tuple[int, Node]], node: Node, width: int, seen: Node) -> int:
    """The first column of a node among those to be concatenated, each once."""
    if node not in places:
        last = next(reversed(places.values()), None)
        places[node] = (0 if last is None else last[0] + width_of(last[1]), seen)
    return places[node][0]


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


LAWS: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
            aten._to_copy.default, aten.lift_fresh_copy.default,
        ),
        same,
    ),
    **dict.fromkeys((*_AXIS,), along_axes),
    **dict.fromkeys((aten.index_select.default, aten.index.Tensor), index),
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), squeeze),
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), view),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), permute),
    **dict.fromkeys((aten.repeat.default, aten.tile.default), repeat),
    **dict.fromkeys((aten.zeros_like.default, aten.ones_like.default, aten.full_like.default), filled_like),
    aten.expand.default: expand,
    aten.sym_size.int: size,
    aten.cat.default: concatenate,
    aten.stack.default: stack,
    operator.getitem: get_item,
}  # fmt: skip
