"""Finds embedding tables whose ids arrive as floating numbers too coarse for their row count.

A binary floating format with ``p`` bits of significand holds every integer up to ``2^p`` and beyond that only every
second, fourth, ... one: neighbouring ids become one id.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from passes.graph_tools import aten, constant_of

_TABLE_AND_IDS = {
    aten.embedding.default: (0, 1),
    aten.embedding_bag.default: (0, 1),
    aten.embedding_bag.padding_idx: (0, 1),
    aten._embedding_bag.default: (0, 1),
    aten._embedding_bag_forward_only.default: (0, 1),
    aten.index_select.default: (0, 2),
    aten.index.Tensor: (0, 1),
}
"""Operators that look rows up in a table, with the positions of the table and of the ids among their arguments."""

_KEEPS_IDS = frozenset(
    {
        aten.slice.Tensor, aten.select.int, aten.view.default, aten._unsafe_view.default, aten.reshape.default,
        aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.cat.default,
        aten.stack.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.chunk.default,
        aten.add.Tensor, aten.sub.Tensor, aten.remainder.Scalar, aten.remainder.Tensor, aten.clamp.default,
        aten.clamp_min.default, aten.clamp_max.default, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf,
        aten.clone.default, aten._to_copy.default, aten.transpose.int, aten.permute.default, aten.expand.default,
        aten.round.default, operator.getitem,
    }
)  # fmt: skip
"""Operators whose output still holds ids when their input does."""


@dataclass(frozen=True)
class CoarseIds:
    """A table whose ids were floating numbers.

    Attributes:
        table: the table's name.
        rows: its number of rows.
        dtype: the coarsest floating dtype that the ids had on their way.
        exact_integers: up to where this dtype holds every integer.
    """

    table: str
    rows: int
    dtype: torch.dtype
    exact_integers: int


def coarse_ids(module: GraphModule) -> Iterator[CoarseIds]:
    """Yields every table with more rows than the floating dtype that its ids travel in can tell apart."""
    seen: set[str] = set()
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in _TABLE_AND_IDS:
            continue
        table_position, ids_position = _TABLE_AND_IDS[node.target]
        source, ids = node.args[table_position], node.args[ids_position]
        table = constant_of(module, source)
        if table is None or not isinstance(source, Node) or str(source.target) in seen:
            continue
        dtype = _coarsest_dtype(ids)
        if dtype is not None and table.shape[0] > exact_integers(dtype):
            seen.add(str(source.target))
            yield CoarseIds(str(source.target), int(table.shape[0]), dtype, exact_integers(dtype))


def exact_integers(dtype: torch.dtype) -> int:
    """Up to where a floating dtype holds every integer: ``2^24`` for float32, ``2^11`` for float16."""
    return int(2 ** (1 - round(math.log2(torch.finfo(dtype).eps))))


def _coarsest_dtype(ids: object) -> torch.dtype | None:
    """The coarsest floating dtype met while walking back from the ids over what keeps ids."""
    pending = list(ids) if isinstance(ids, (list, tuple)) else [ids]
    visited: set[Node] = set()
    found: torch.dtype | None = None
    while pending:
        node = pending.pop()
        if not isinstance(node, Node) or node in visited:
            continue
        visited.add(node)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found = value.dtype if found is None else min(found, value.dtype, key=exact_integers)
        if node.op == "call_function" and node.target in _KEEPS_IDS:
            pending.extend(node.all_input_nodes)
    return found
