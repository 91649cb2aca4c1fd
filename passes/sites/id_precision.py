"""Finds embedding tables whose ids arrive as floating numbers too coarse for their row count.

A binary floating format with ``p`` bits of significand holds every integer up to ``2^p`` and beyond that only every
second, fourth, ... one: neighbouring ids become one id.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from passes.graph import KEEPS_IDS, args_of, aten, constant_of
from passes.sites.lookups import ids_of


@dataclass(frozen=True)
class CoarseIds:
    """A table whose ids were floating numbers.

    Attributes:
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
        ids = args_of(node)[2] if node.target is aten.index_select.default else ids_of(node)
        table = constant_of(module, node.args[0]) if isinstance(ids, Node) else None
        if not isinstance(ids, Node) or table is None or (name := str(args_of(node)[0].target)) in seen:
            continue
        dtype = _coarsest_dtype(ids)
        if dtype is not None and table.shape[0] > exact_integers(dtype):
            seen.add(name)
            yield CoarseIds(name, int(table.shape[0]), dtype, exact_integers(dtype))


def exact_integers(dtype: torch.dtype) -> int:
    """Up to where a floating dtype holds every integer: ``2^24`` for float32, ``2^11`` for float16."""
    return int(2 ** (1 - round(math.log2(torch.finfo(dtype).eps))))


def _coarsest_dtype(ids: Node) -> torch.dtype | None:
    """The coarsest floating dtype met while walking back from the ids over what keeps ids."""
    pending = [ids]
    visited: set[Node] = set()
    found: torch.dtype | None = None
    while pending:
        node = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found = value.dtype if found is None else min(found, value.dtype, key=exact_integers)
        if node.op == "call_function" and node.target in KEEPS_IDS:
            pending.extend(node.all_input_nodes)
    return found
