"""Other forms of one low-rank value: what operators on codes need before they can work on it.

None of these changes what the value decodes to: a gated offset may become a column of the code, blocks that share code
columns may get columns of their own, and a value may be repeated along axes of size 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from passes.codes import Block, CodeBuilder, LowRankValue, width_of
from passes.graph import aten, value_of
from passes.laws.moves import equal_sizes, on_features, static
from passes.laws.outcomes import Restored


def along_features(builder: CodeBuilder, value: LowRankValue, constant: Any) -> Tensor | None:
    """A number, or a constant of the graph that only varies along the features, as [features] in float64; or None."""
    is_number = isinstance(constant, (int, float))
    tensor = torch.tensor(float(constant), dtype=torch.float64) if is_number else builder.constant(constant)
    beyond = 0 if tensor is None else max(tensor.dim() - len(value.trailing), 0)
    if tensor is None or any(size != 1 for size in tensor.shape[:beyond]):
        return None
    tensor = tensor.reshape(tensor.shape[beyond:]).to("cpu", torch.float64)
    return torch.broadcast_to(tensor, value.trailing).reshape(-1)


def units_as_columns(
    builder: CodeBuilder, value: LowRankValue, *, only: Callable[[Block], bool] | None = None
) -> LowRankValue:
    """Replaces ``A z + g u`` with ``[A, g] [z; u]`` in the blocks that ``only`` picks; they then have no unit."""
    chosen = [block.unit is not None and (only is None or only(block)) for block in value.blocks]
    if value.units is None or not any(chosen):
        return value
    code = builder.beside([value.code, value.units])
    first, blocks = width_of(value.code), list[Block]()
    for block, folded in zip(value.blocks, chosen, strict=True):
        if folded and block.unit is not None:
            columns = (*block.columns, first + block.unit)
            blocks.append(Block(columns, block.decoder.gated_as_column()))
        else:
            blocks.append(block)
    units = value.units if any(block.unit is not None for block in blocks) else None
    return replace(value, code=code, blocks=tuple(blocks), units=units)


def through_lead(builder: CodeBuilder, value: LowRankValue, change: Callable[[Node], Node]) -> LowRankValue:
    """Applies a linear operator that works on the leading axes alone and on every feature alike.

    Replaces ``L(A z + o + g u)`` with ``A L(z) + o L(1) + g L(u)``: code, units and a column of ones go through it at
    once.
    """
    if any(block.unit is not None and block.decoder.offset is not None for block in value.blocks):
        value = units_as_columns(builder, value)
    parts = [value.code, *([] if value.units is None else [value.units])]
    columns, units = width_of(value.code), 0 if value.units is None else width_of(value.units)
    shifts = any(block.decoder.offset is not None for block in value.blocks)
    if shifts:
        first = builder.pick(value.code, [0])
        parts.append(builder.emit(aten.ones_like.default, first))
    changed = change(builder.beside(parts))
    code = builder.pick(changed, range(columns))
    last = columns + units + shifts
    kept = builder.pick(changed, range(columns, last)) if last > columns else None
    blocks = [
        block if block.decoder.offset is None else replace(block, decoder=block.decoder.gated_offset(), unit=units)
        for block in value.blocks
    ]
    return LowRankValue(code, tuple(value_of(code).shape)[:-1], value.trailing, tuple(blocks), kept)


def separated(builder: CodeBuilder, value: LowRankValue) -> LowRankValue:
    """The value with code columns that no two blocks share."""
    columns = list(itertools.chain.from_iterable(block.columns for block in value.blocks))
    if len(columns) == len(set(columns)):
        return value
    starts = itertools.accumulate((len(block.columns) for block in value.blocks), initial=0)
    blocks = tuple(
        replace(block, columns=tuple(range(start, start + len(block.columns))))
        for start, block in zip(starts, value.blocks, strict=False)
    )
    return replace(value, code=builder.pick(value.code, columns), blocks=blocks)


def spread_features(builder: CodeBuilder, value: LowRankValue, shape: Sequence[Any]) -> LowRankValue | None:
    """The value with its feature axes repeated as in a shape that it broadcasts to; its leading axes stay.

    Returns:
        None where the sizes are not known before the model runs.
    """
    axes = len(value.trailing)
    if equal_sizes(shape[-axes:], value.trailing):
        return value
    if not static(shape[-axes:]):
        pushed = builder.push(value)
        if pushed is None or not equal_sizes(shape[-1:], pushed.trailing):
            return None
        return pushed
    moved = on_features(value, lambda positions: np.broadcast_to(positions, tuple(shape[-axes:])))
    return None if isinstance(moved, Restored) else moved


def spread(builder: CodeBuilder, node: Node, value: LowRankValue, others: Sequence[Node]) -> LowRankValue | None:
    """The value repeated to the shape of a node's result.

    Args:
        others: nodes that are there already, among whose sizes the result's are found.

    Returns:
        None where the sizes are not known before the model runs.
    """
    shape = tuple(value_of(node).shape)
    spreading = spread_features(builder, value, shape)
    if spreading is None:
        return None
    lead = shape[: len(shape) - len(spreading.trailing)]
    if equal_sizes(lead, spreading.lead):
        return spreading
    new = len(lead) - len(spreading.lead)
    sizes: list[Any] = []
    for axis, size in enumerate(lead):
        if axis >= new and str(spreading.lead[axis - new]) == str(size):
            sizes.append(-1)
        elif isinstance(size, int):
            sizes.append(size)
        else:
            found = _size(builder, size, [value.code, *others])
            if found is None:
                return None
            sizes.append(found)
    return builder.on_lead(spreading, lambda code: builder.emit(aten.expand.default, code, [*sizes, -1]))


def _size(builder: CodeBuilder, size: Any, sources: Sequence[Node]) -> Node | None:
    """A node that holds a symbolic size."""
    for source in sources:
        for axis, own in enumerate(value_of(source).shape):
            if str(own) == str(size):
                return builder.emit(aten.sym_size.int, source, axis)
    return None
