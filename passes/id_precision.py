"""Finds embedding tables whose ids arrive as floating numbers too coarse for their row count."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from passes.graph_tools import aten, constant_of

_PASSED_THROUGH = frozenset(
    {
        aten.slice.Tensor, aten.select.int, aten.view.default, aten.reshape.default, aten.squeeze.dim,
        aten.unsqueeze.default, aten.cat.default, aten.add.Tensor, aten.clone.default, aten.squeeze.default,
        aten._to_copy.default, aten.transpose.int, aten.permute.default, aten.expand.default,
    }
)  # fmt: skip


def ids_travel_as_float(module: GraphModule, exact_integers: int) -> Iterator[tuple[str, int]]:
    """Yields (table name, rows) of every table with more than ``exact_integers`` rows whose ids were float32."""
    seen: set[str] = set()
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is not aten.embedding.default:
            continue
        table = constant_of(module, node.args[0])
        name = str(node.args[0].target) if isinstance(node.args[0], Node) else ""
        if table is None or table.shape[0] <= exact_integers or name in seen:
            continue
        if _was_float32(node.args[1]):
            seen.add(name)
            yield name, int(table.shape[0])


def _was_float32(ids: object) -> bool:
    """Whether walking back over moves and casts from the ids meets a float32 value."""
    pending, visited = [ids], set()
    while pending:
        node = pending.pop()
        if not isinstance(node, Node) or node in visited:
            continue
        visited.add(node)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
            return True
        if node.op == "call_function" and node.target in _PASSED_THROUGH:
            pending.extend(node.all_input_nodes)
    return False
