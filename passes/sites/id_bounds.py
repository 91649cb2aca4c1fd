"""What becomes of an id outside its table once the table is a part of a larger one.

A lookup in a table of its own fails for an id beyond the table's end. In a packed table the same id reads the next
table's rows, and neither torch nor ONNX Runtime can notice. The guard costs a few small operators on the ids per call:

    unchecked      nothing in the graph; whoever calls it must feed valid ids (``Program.run`` checks them)
    error          such an id is sent beyond the packed table's end, where the runtime fails as before
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch.fx import GraphModule, Node

from passes.graph import FeatureColumns, IdColumn, aten, buffer, call, value_of

RULE = "guard ids"
BEYOND = 2**40
"""No table has so many rows."""


class OutOfRange(StrEnum):
    """What a packed lookup does with an id outside its table."""

    UNCHECKED = "unchecked"
    ERROR = "error"


@dataclass(frozen=True)
class IdBound:
    """The range of one column of ids."""

    input: str
    column: int
    low: int
    high: int
    table: str


def input_bounds(columns: FeatureColumns, table: str, rows: int, ids: Iterable[IdColumn]) -> Iterator[IdBound]:
    """What the ids of a table must lie within, where they are columns of an input."""
    for each in ids:
        source, place = columns.source(each.column)
        if source.op == "placeholder":
            yield IdBound(source.name, place, -each.offset, rows - each.offset, table)


def guarded(module: GraphModule, ids: Node, valid: Sequence[tuple[int, int]], like: Node) -> Node:
    """The ids int64 [batch, fields], those outside ``low <= id < high`` (valid, per field) beyond every table."""
    graph, device = module.graph, value_of(like).device
    low, high = zip(*valid, strict=True)
    bounds = [
        buffer(module, f"packed_table.{name}", torch.tensor(values, device=device), rule=RULE)
        for name, values in (("low", low), ("high", [each - 1 for each in high]), ("beyond", BEYOND))
    ]
    largest = call(graph, aten.maximum.default, ids, bounds[0], rule=RULE, like=like)
    inside = call(graph, aten.minimum.default, largest, bounds[1], rule=RULE, like=like)
    kept = call(graph, aten.eq.Tensor, ids, inside, rule=RULE, like=like)
    return call(graph, aten.where.self, kept, ids, bounds[2], rule=RULE, like=like)
