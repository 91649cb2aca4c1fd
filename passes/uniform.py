"""Tensors that are the same all along an axis although they are written out: masks and norms that were expanded.

Replaces such a tensor with its first entry along the axis, ``m[.., 0:1]``, so that it can serve as a gate.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.graph_tools import aten, shape_of

_REPEATS = frozenset(
    {
        aten.expand.default, aten.repeat.default, aten.tile.default, aten.repeat_interleave.self_int,
        aten._to_copy.default, aten.clone.default, aten.where.ScalarOther, aten.where.ScalarSelf,
    }
)  # fmt: skip
"""Operators, besides the pointwise ones, whose result is uniform along an axis where all operands are."""

_CONSTANTS = frozenset(
    {
        aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.zeros.default,
        aten.ones.default, aten.full.default,
    }
)  # fmt: skip


def narrowed(builder: CodeBuilder, tensor: Node, axes: int) -> Node:
    """The tensor with size 1 along those of its last ``axes`` axes along which it is known to be uniform."""
    shape = shape_of(tensor) or ()
    for axis in range(1, min(axes, len(shape)) + 1):
        if str(shape[-axis]) != "1" and is_uniform(tensor, axis):
            tensor = builder.emit(aten.slice.Tensor, tensor, len(shape) - axis, 0, 1)
    return tensor


def is_uniform(node: Node, axis: int) -> bool:
    """Whether a tensor is known to be the same all along an axis, counted from the end (1 is the last)."""
    pending, seen = [node], set[Node]()
    while pending:
        each = pending.pop()
        shape = shape_of(each)
        if each in seen or (shape is not None and (axis > len(shape) or str(shape[-axis]) == "1")):
            continue
        seen.add(each)
        if each.target in _CONSTANTS:
            continue
        if shape is None or not _keeps_axes(each):
            return False
        pending += [operand for operand in each.all_input_nodes if shape_of(operand) is not None]
    return True


def _keeps_axes(node: Node) -> bool:
    """Whether every entry of a node's result depends on the entries of its operands at the same place."""
    if node.target in _REPEATS:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    tags = node.target.tags
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags
