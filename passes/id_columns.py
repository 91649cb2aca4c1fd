"""Id columns: which input column an id is, through casts, constant offsets and everything that only moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.feature_columns import FeatureColumns
from passes.graph_tools import args_of, aten, constant_of, shape_of, value_of


@dataclass(frozen=True)
class IdColumn:
    """One id per row.

    Attributes:
        column: number of the column (see :class:`passes.feature_columns.FeatureColumns`) that holds it.
        offset: constant that is added to the integer.
    """

    column: int
    offset: int = 0


def id_columns(module: GraphModule, columns: FeatureColumns, index: Node) -> tuple[IdColumn, ...] | None:
    """The ids of an index ``[batch, ...]``, row-major; None where it is not such a tensor of integers."""
    value = value_of(index)
    wanted = columns.of(index)
    if wanted is None or not isinstance(value, Tensor) or value.is_floating_point() or value.dtype is torch.bool:
        return None
    which, places = columns.sources(wanted.reshape(-1))
    found: list[IdColumn] = []
    deeper: dict[int, tuple[IdColumn, ...] | None] = {}
    for column, number, place in zip(wanted.reshape(-1).tolist(), which.tolist(), places.tolist(), strict=True):
        if number not in deeper:
            deeper[number] = _behind(module, columns, columns.node(number))
        inner = deeper[number]
        found.append(IdColumn(int(column)) if inner is None else inner[place])
    return tuple(found)


def _behind(  # noqa: PLR0911 - one reason each
    module: GraphModule, columns: FeatureColumns, source: Node
) -> tuple[IdColumn, ...] | None:
    """The ids of what a cast or the addition of a constant is applied to."""
    if source.op != "call_function" or not args_of(source) or not isinstance(args_of(source)[0], Node):
        return None
    before = args_of(source)[0]
    if columns.of(before) is None or not isinstance(value_of(before), Tensor):
        return None
    if source.target is aten._to_copy.default and set(source.kwargs) <= {"dtype"}:
        if not value_of(before).is_floating_point():
            return id_columns(module, columns, before)
        wanted = columns.of(before)
        return None if wanted is None else tuple(IdColumn(int(column)) for column in wanted.reshape(-1))
    if source.target is aten.add.Tensor and not source.kwargs and shape_of(before) == shape_of(source):
        added = _constant(module, args_of(source)[1])
        trailing = columns.trailing(source)
        inner = id_columns(module, columns, before)
        if added is None or trailing is None or inner is None or added.dim() > len(trailing):
            return None
        offsets = np.broadcast_to(added.numpy(), trailing).reshape(-1)
        return tuple(
            IdColumn(each.column, each.offset + int(offset)) for each, offset in zip(inner, offsets, strict=True)
        )
    return None


def _constant(module: GraphModule, operand: object) -> Tensor | None:
    """An integer constant of an addition."""
    if isinstance(operand, int) and not isinstance(operand, bool):
        return torch.tensor(operand)
    tensor = constant_of(module, operand)
    if tensor is None or tensor.is_floating_point() or tensor.dtype is torch.bool:
        return None
    return tensor.detach().cpu()
