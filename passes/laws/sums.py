"""LINEAR: sums of features, with each other and with constants.

Replaces ``(A z + o) + (A z' + o')`` with ``A (z + z') + (o + o')``; where the decoders differ, the codes are kept side
by side, ``A z + A' z' = [A, A'] [z; z']``. A sum over fields is the same with the fields of one value. A constant goes
into the offset; so does the shift ``b - s * mean`` of a batch norm in eval mode, whose scale ``w / sqrt(var + eps)``
goes into the decoder's rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.codes import Block, CodeBuilder, Decoder, LowRankValue, align, split_rows, width_of
from passes.graph import args_of, argument, aten, value_of
from passes.laws import absorb
from passes.laws.absorb import Affine
from passes.laws.common_form import along_features, spread, through_lead, units_as_columns
from passes.laws.gates import scaled
from passes.laws.moves import OTHER_DTYPE, UNKNOWN_SIZES, keeps_axes, keeps_shape, reduced_axes, single, static
from passes.laws.outcomes import Absorbed, Carried, Law, Outcome, Restored, Rule, Values

MIXED = "it adds dense features to features that are written in a code"
SHAPES = "it repeats the features along other axes while it adds them"
STRADDLE = "it adds features whose codes do not line up"
BATCH_AXIS = "its channels lie along an axis whose size is not known before the model runs"
STATISTICS = "its scale or its running statistics are not constants"
TRAINING = "it normalizes by statistics of the batch, which change with every batch"
SUMMED = "a sum of the features of a code is a Linear of ones, taken into its weight"


def add(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``add``, ``sub``: of two low-rank values, or of one and a constant."""
    factor = node.kwargs.get("alpha", 1)
    if not isinstance(factor, (int, float)):
        return Restored(MIXED)
    return _weighted(builder, node, values, 1.0, -factor if node.target is aten.sub.Tensor else factor)


def subtract_from(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``rsub``: a number minus a low-rank value."""
    factor = argument(node, 2, 1)
    return _weighted(builder, node, values, -factor, 1.0) if isinstance(factor, (int, float)) else Restored(MIXED)


def _weighted(builder: CodeBuilder, node: Node, values: Values, left_factor: float, right_factor: float) -> Outcome:
    """The sum of a node's first two operands, each times a number."""
    one, other = node.args[:2]
    left, right = (values.get(each) if isinstance(each, Node) else None for each in (one, other))
    if isinstance(left, LowRankValue):
        left = scaled(builder, left, left_factor)
        if not isinstance(right, LowRankValue):
            return shifted(builder, node, left, other, right_factor)
        return total(builder, node, left, scaled(builder, right, right_factor))
    if isinstance(right, LowRankValue):
        return shifted(builder, node, scaled(builder, right, right_factor), one, left_factor)
    return Restored(MIXED)


def negate(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``neg``."""
    value = single(node, values)
    return Restored(OTHER_DTYPE) if value is None else Carried(scaled(builder, value, -1.0))


def total(builder: CodeBuilder, node: Node, left: LowRankValue, right: LowRankValue) -> Outcome:
    """The sum of two values that broadcast to the node's shape."""
    codes = [left.code, right.code]
    spreads = [spread(builder, node, each, codes) for each in (left, right)]
    if spreads[0] is None or spreads[1] is None:
        return Restored(SHAPES)
    return added(builder, node, spreads[0], spreads[1])


def shifted(builder: CodeBuilder, node: Node, value: LowRankValue, constant: Any, factor: float) -> Outcome:
    """Adds a constant along the features, times a number, to the offsets."""
    if not keeps_shape(node, value):
        return Restored(SHAPES)
    vector = along_features(builder, value, constant)
    if vector is None:
        return Restored(MIXED)
    key = constant, factor, value.trailing
    return Carried(value.with_decoders(lambda decoder, own: decoder.shifted(vector[own] * factor, (*key, own.start))))


def added(builder: CodeBuilder, node: Node, left: LowRankValue, right: LowRankValue) -> Outcome:
    """The sum of two values of one shape, the node's."""
    if len(left.lead) != len(right.lead):
        lead = min(len(left.lead), len(right.lead))
        pulled = [builder.pull(each, len(each.lead) - lead) for each in (left, right)]
        if pulled[0] is None or pulled[1] is None:
            return Restored(UNKNOWN_SIZES)
        left, right = pulled[0], pulled[1]
    pairs = align(left.blocks, right.blocks)
    if pairs is None:
        return Restored(STRADDLE)
    if all(one.decoder.key == other.decoder.key for one, other in pairs) and _same_layout(left, right, pairs):
        return _with_codes_added(builder, left, right, pairs)
    if any(one.unit is not None or other.unit is not None for one, other in pairs):
        folded = [units_as_columns(builder, each) for each in (left, right)]
        return added(builder, node, *folded)
    code = builder.beside([left.code, right.code])
    width = width_of(left.code)
    blocks = [
        Block((*one.columns, *other.moved(width, 0).columns), one.decoder.beside(other.decoder)) for one, other in pairs
    ]
    return Carried(LowRankValue(code, left.lead, tuple(value_of(node).shape)[len(left.lead) :], tuple(blocks)))


def _same_layout(left: LowRankValue, right: LowRankValue, pairs: Sequence[tuple[Block, Block]]) -> bool:
    """Whether every block reads the same columns on both sides, so that one addition serves all."""
    return width_of(left.code) == width_of(right.code) and all(one.columns == other.columns for one, other in pairs)


def _with_codes_added(
    builder: CodeBuilder, left: LowRankValue, right: LowRankValue, pairs: Sequence[tuple[Block, Block]]
) -> Outcome:
    """One addition of the codes; constant and gated offsets add up block by block."""
    blocks, sums, folded = [], dict[tuple[int | None, int | None], int](), dict[int, int]()
    width = width_of(left.code)
    for one, other in pairs:
        first, second, columns, own = one.decoder, other.decoder, one.columns, one.unit
        if own is not None and other.unit is not None and first.gated_key != second.gated_key:
            columns = (*columns, width + folded.setdefault(own, len(folded)))
            first, own = first.gated_as_column(), None
        decoder = first.plus_offsets(second)
        unit = None
        if decoder.gated is not None:
            unit = sums.setdefault((own, other.unit), len(sums))
        blocks.append(Block(columns, decoder, unit))
    code = builder.emit(aten.add.Tensor, left.code, right.code)
    if folded and left.units is not None:
        code = builder.beside([code, builder.pick(left.units, list(folded))])
    units = _summed_units(builder, (left, right), list(sums)) if sums else None
    return Carried(replace(left, code=code, units=units, blocks=tuple(blocks)))


def _summed_units(
    builder: CodeBuilder, operands: tuple[LowRankValue, LowRankValue], sums: Sequence[tuple[int | None, int | None]]
) -> Node:
    columns = []
    for pair in sums:
        parts = [
            builder.pick(value.units, [unit])
            for value, unit in zip(operands, pair, strict=True)
            if unit is not None and value.units is not None
        ]
        columns.append(functools.reduce(lambda x, y: builder.emit(aten.add.Tensor, x, y), parts))
    return builder.beside(columns)


def batch_norm(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """Batch norm in eval mode, a constant scale and shift per channel: ``(diag(s) A) z + (s * o + t)``."""
    several = node.target is aten._native_batch_norm_legit_no_training.default  # a tuple, its first element used
    if not several and node.args[5]:
        return Restored(TRAINING, Law.NONLINEAR)
    value, origins = single(node, values), args_of(node)[1:5]
    weight, bias, mean, variance = (_in_double(builder.constant(origin)) for origin in origins)
    if value is None or mean is None or variance is None:
        return Restored(STATISTICS)
    if (weight is None and origins[0] is not None) or (bias is None and origins[1] is not None):
        return Restored(STATISTICS)
    value = builder.pull(value, max(len(value.lead) - 1, 0))
    if value is None or not value.lead:
        return Restored(BATCH_AXIS)
    scale = (variance + float(args_of(node)[6 if several else 7])).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    trailing = value.trailing
    channels = torch.arange(value.features) // math.prod(trailing[1:])

    def normalized(decoder: Decoder, own: slice) -> Decoder:
        key = ("normalized", origins, trailing, own.start)
        return decoder.scaled_by(scale[channels[own]], key).shifted(shift[channels[own]], key)

    result = value.with_decoders(normalized)
    return Carried((result,) if several else result)


def _in_double(constant: Tensor | None) -> Tensor | None:
    return None if constant is None else constant.to("cpu", torch.float64)


def reduce(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``sum``, ``mean`` over leading axes, fields, or all features."""
    value, mean = single(node, values), node.target in (aten.mean.dim, aten.mean.default)
    if value is None or node.kwargs.get("dtype") is not None:
        return Restored(OTHER_DTYPE)
    axes, keep = reduced_axes(node, len(value.shape)), keeps_axes(node)
    leading = [axis for axis in axes if axis < len(value.lead)]
    fields = [axis - len(value.lead) for axis in axes if axis >= len(value.lead)]
    outcome: LowRankValue | Restored | Absorbed = value
    if leading:
        outcome = _over_lead(builder, value, leading, keep=keep, mean=mean)
    if fields and isinstance(outcome, LowRankValue):
        outcome = _over_features(builder, outcome, _Reduction(tuple(fields), outcome.trailing, keep, mean))
    return Carried(outcome) if isinstance(outcome, LowRankValue) else outcome


def _over_lead(
    builder: CodeBuilder, value: LowRankValue, axes: list[int], *, keep: bool, mean: bool
) -> LowRankValue | Restored:
    """A sum over leading axes: of the code; a constant offset is added as often."""
    sizes = [value.lead[axis] for axis in axes]
    constant = any(block.decoder.offset is not None for block in value.blocks)
    target = aten.mean.dim if mean else aten.sum.dim_IntList

    def change(code: Node) -> Node:
        return builder.emit(target, code, axes, keep)

    if constant and not mean and not static(sizes):
        return through_lead(builder, value, change)
    summed = builder.on_lead(value, change)
    if not constant or mean:
        return summed
    times = float(math.prod(sizes))
    blocks = [replace(block, decoder=block.decoder.offset_scaled(times)) for block in value.blocks]
    return replace(summed, blocks=tuple(blocks))


@dataclass(frozen=True)
class _Reduction:
    """A sum or mean over feature axes."""

    axes: tuple[int, ...]
    trailing: tuple[int, ...]
    keep: bool
    mean: bool

    @property
    def rest(self) -> list[int]:
        """The axes that remain."""
        return [axis for axis in range(len(self.trailing)) if axis not in self.axes]

    @property
    def results(self) -> int:
        """Number of features that remain."""
        return math.prod(self.trailing[axis] for axis in self.rest)

    @property
    def shape(self) -> tuple[int, ...]:
        """The feature axes of the result."""
        if self.keep:
            return tuple(1 if axis in self.axes else size for axis, size in enumerate(self.trailing))
        return tuple(self.trailing[axis] for axis in self.rest)

    @property
    def share(self) -> float:
        """What every feature counts in its sum."""
        return 1.0 / math.prod(self.trailing[axis] for axis in self.axes) if self.mean else 1.0


def _over_features(
    builder: CodeBuilder, value: LowRankValue, reduction: _Reduction
) -> LowRankValue | Restored | Absorbed:
    """A sum over feature axes: over fields, the codes side by side; within the codes, a Linear of ones."""
    if reduction.results == 1 or list(reduction.axes) != list(range(len(reduction.axes))):
        return _totals(builder, value, reduction)
    value = units_as_columns(builder, value)
    rows = split_rows(value.blocks, reduction.results)
    if rows is None:
        return Restored(STRADDLE)
    total = list(rows[0])
    for row in rows[1:]:
        pairs = align(total, row)
        if pairs is None:
            return Restored(STRADDLE)
        total = [Block((*one.columns, *other.columns), one.decoder.beside(other.decoder)) for one, other in pairs]
    result = value.with_blocks(total, reduction.shape)
    return scaled(builder, result, reduction.share)


def _totals(builder: CodeBuilder, value: LowRankValue, reduction: _Reduction) -> Absorbed:
    """Sums within the codes: the Linear whose row for every result adds up the features that belong to it."""
    positions = torch.arange(value.features).reshape(value.trailing)
    members = positions.permute(*reduction.rest, *reduction.axes).reshape(reduction.results, -1)
    ones = torch.zeros((reduction.results, value.features), dtype=torch.float64)
    ones.scatter_(1, members, reduction.share)
    flat = replace(value, trailing=(value.features,))
    affine = Affine(ones, None, None, None, ("totals", reduction), is_new=True)
    result = absorb.linear_on(builder, flat, affine)
    return Absorbed(builder.view(result, value.lead, *reduction.shape), SUMMED)


LAWS: dict[Any, Rule] = {
    aten.add.Tensor: add,
    aten.sub.Tensor: add,
    aten.rsub.Scalar: subtract_from,
    aten.neg.default: negate,
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.batch_norm.default: batch_norm,
    **dict.fromkeys((aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default), reduce),
}
