"""Assembles a tensor from feature columns with as few copies as there are pieces.

A piece is a box of one source: a whole tensor, a range of some of its axes, or chosen rows of one axis. A box costs a
``slice`` per cut axis (or one ``index_select``) and several boxes one ``cat``; a ``reshape`` moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from passes.graph import Columns, FeatureColumns, aten, buffer, call, shape_of, stamp, value_of

MOST_RUNS = 3
"""So many pieces of one source are cut out one by one; more are picked in one ``index_select`` where rows allow it."""


@dataclass(frozen=True)
class Box:
    """A part of one source.

    Attributes:
        view: the source's features seen as these axes.
        ranges: (start, end) per axis of the view.
        rows: entries of axis 0 of the view, where they are no range.
    """

    source: int
    view: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    rows: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes that it is cut out with."""
        if self.rows is not None:
            return (len(self.rows), *self.view[1:])
        return tuple(end - start for start, end in self.ranges)

    def cut_for(self, shape: Sequence[int]) -> Box:
        """The same part, cut once where it is wanted in another shape and is one run of its source's features."""
        cuts = sum(whole != (0, size) for whole, size in zip(self.ranges, self.view, strict=False))
        if cuts < 2 or self.shape == tuple(shape):
            return self
        first = int(np.ravel_multi_index([start for start, _ in self.ranges], self.view))
        last = int(np.ravel_multi_index([end - 1 for _, end in self.ranges], self.view))
        size = math.prod(self.shape)
        return Box(self.source, (math.prod(self.view),), ((first, last + 1),)) if last + 1 - first == size else self


class Assembler:
    """Emits the nodes that assemble columns of a graph, stamped with a rule; equal nodes are made once."""

    def __init__(self, module: GraphModule, columns: FeatureColumns, rule: str) -> None:
        self.module, self.columns, self.rule = module, columns, rule
        self._made: dict[Hashable, Node] = {}
        self._assembled: dict[bytes, Node] = {}

    @property
    def nodes(self) -> list[Node]:
        """All nodes made, in order."""
        return list(self._made.values())

    def assemble(self, columns: Columns, like: Node) -> Node:
        """A node ``[batch, *columns.shape]`` before the graph's insertion point, and behind those assembled before."""
        key = columns.tobytes()
        if key not in self._assembled:
            self._assembled[key] = self._joined(columns, like)
        return self._shaped(self._assembled[key], columns.shape, like)

    def _joined(self, columns: Columns, like: Node) -> Node:
        """A node that holds the columns in row-major order, in the shape that takes the fewest reshapes."""
        boxes = self.boxes(columns)
        if len(boxes) == 1:
            return self._cut(boxes[0].cut_for(columns.shape), like)
        scalars = self._scalars(boxes, like)
        if scalars is not None:
            return scalars
        axis, shapes = 0, [(math.prod(box.shape),) for box in boxes]
        joint = self._joint(columns, boxes)
        if joint is not None:
            outer, inner = columns.shape[:joint], columns.shape[joint + 1 :]
            side_by_side = [(*outer, math.prod(box.shape) // math.prod((*outer, *inner)), *inner) for box in boxes]
            if _reshapes(boxes, side_by_side) <= _reshapes(boxes, shapes) + (columns.ndim != 1):
                axis, shapes = joint, side_by_side
        cuts = [(box.cut_for(shape), shape) for box, shape in zip(boxes, shapes, strict=True)]
        parts = [self._shaped(self._cut(box, like), shape, like) for box, shape in cuts]
        return self._emit(aten.cat.default, parts, axis + 1, like=like)

    def _scalars(self, boxes: Sequence[Box], like: Node) -> Node | None:
        """Many inputs ``[batch]`` as the columns of one tensor: one below the other, then transposed."""
        if len(boxes) <= MOST_RUNS or any(box.view for box in boxes):
            return None
        batch = self.columns.batch
        below = self._emit(aten.cat.default, [self.columns.node(box.source) for box in boxes], 0, like=like)
        rows = self._emit(aten.reshape.default, below, [len(boxes), batch if isinstance(batch, int) else -1], like=like)
        return self._emit(aten.transpose.int, rows, 0, 1, like=like)

    def _joint(self, columns: Columns, boxes: Sequence[Box]) -> int | None:
        """The axis along which the boxes lie side by side in row-major order."""
        for axis in range(columns.ndim):
            if math.prod(columns.shape[:axis]) != 1:
                break
            inner = math.prod(columns.shape[axis + 1 :])
            if all(math.prod(box.shape) % inner == 0 for box in boxes):
                return axis
        return None

    def boxes(self, columns: Columns) -> list[Box]:
        """The columns, row-major, as boxes."""
        flat = columns.reshape(-1)
        which, places = self.columns.sources(flat)
        cuts = np.flatnonzero(np.diff(which)) + 1
        found: list[Box] = []
        for run in np.split(np.arange(flat.size), cuts):
            found += self._boxes_of_one(int(which[run[0]]), places[run])
        return found

    def _boxes_of_one(self, source: int, places: Columns) -> list[Box]:
        trailing = tuple(shape_of(self.columns.node(source)) or ())[1:]
        box = _box(source, trailing, places)
        if box is not None:
            return [box]
        runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
        width, many = math.prod(trailing), len(runs) > MOST_RUNS
        if many and len({len(run) for run in runs}) == 1:
            box = _strided(source, width, runs) or _rows(source, width, runs)
        if box is None and many and len(trailing) > 1 and len(places) % trailing[-1] == 0:
            box = _rows(source, width, np.split(places, len(places) // trailing[-1]))
        if box is not None:
            return [box]
        return [Box(source, (width,), ((int(run[0]), int(run[-1]) + 1),)) for run in runs]

    def _cut(self, box: Box, like: Node) -> Node:
        node = self.columns.node(box.source)
        whole = tuple((0, size) for size in box.view)
        if box.rows is None and box.ranges == whole:
            return node
        node = self._shaped(node, box.view, like)
        if box.rows is not None:
            index = self._constant(torch.tensor(box.rows), like)
            return self._emit(aten.index_select.default, node, 1, index, like=like)
        for axis, (start, end) in enumerate(box.ranges):
            if (start, end) != whole[axis]:
                node = self._emit(aten.slice.Tensor, node, axis + 1, start, end, like=like)
        return node

    def _shaped(self, node: Node, shape: Sequence[int], like: Node) -> Node:
        if tuple((shape_of(node) or ())[1:]) == tuple(shape):
            return node
        first = -1 if not isinstance(self.columns.batch, int) else self.columns.batch
        return self._emit(aten.reshape.default, node, [first, *shape], like=like)

    def _constant(self, tensor: torch.Tensor, like: Node) -> Node:
        key = ("constant", tuple(tensor.reshape(-1).tolist()))
        if key not in self._made:
            device = value_of(like).device if isinstance(value_of(like), torch.Tensor) else None
            self._made[key] = buffer(self.module, "picked_rows", tensor.to(device=device), rule=self.rule)
        return self._made[key]

    def _emit(self, target: Any, *args: Any, like: Node) -> Node:
        key = (target, tuple(tuple(each) if isinstance(each, list) else each for each in args))
        known = self._made.get(key)
        if known is None:
            known = self._made[key] = call(self.module.graph, target, *args, rule=self.rule)
            stamp(known, self.rule, like)
        return known


def _reshapes(boxes: Sequence[Box], shapes: Sequence[tuple[int, ...]]) -> int:
    """How many boxes are not cut out in these shapes."""
    return sum(box.cut_for(shape).shape != shape for box, shape in zip(boxes, shapes, strict=True))


def _box(source: int, trailing: tuple[int, ...], places: Columns) -> Box | None:
    """The places as a range of each of the source's axes."""
    if not trailing:
        return Box(source, (), ())
    axes = np.unravel_index(places, trailing)
    ranges = tuple((int(axis.min()), int(axis.max()) + 1) for axis in axes)
    if math.prod(end - start for start, end in ranges) != len(places):
        return None
    whole = np.arange(math.prod(trailing)).reshape(trailing)[tuple(slice(start, end) for start, end in ranges)]
    return Box(source, trailing, ranges) if np.array_equal(whole.reshape(-1), places) else None


def _strided(source: int, width: int, runs: Sequence[Columns]) -> Box | None:
    """Runs of one length at one distance as a range of a two-axis view."""
    steps = np.diff([int(run[0]) for run in runs])
    length = len(runs[0])
    if len(set(steps.tolist())) != 1 or steps[0] <= 0 or width % int(steps[0]):
        return None
    stride = int(steps[0])
    row, column = divmod(int(runs[0][0]), stride)
    if column + length > stride:
        return None
    return Box(source, (width // stride, stride), ((row, row + len(runs)), (column, column + length)))


def _rows(source: int, width: int, runs: Sequence[Columns]) -> Box | None:
    """Whole rows of a two-axis view, in any order."""
    length = len(runs[0])
    contiguous = all(int(run[-1]) - int(run[0]) + 1 == len(run) == length for run in runs)
    if width % length or length == 1 or not contiguous or any(int(run[0]) % length for run in runs):
        return None
    return Box(source, (width // length, length), (), tuple(int(run[0]) // length for run in runs))
