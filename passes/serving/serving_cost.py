"""What a graph costs to serve, as far as packing changes it: launches, copied bytes and pieces, products.

A rewrite is kept where this estimate says it pays for a single row and for a large batch. The constants are those of
one core under ONNX Runtime; what matters is their proportion.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph import args_of, aten, shape_of, value_of

LAUNCH_US = 1.2
"""One operator."""
PIECE_US = 0.006
"""One contiguous piece that is copied."""
BYTES_PER_US = 8_000.0
"""Copying."""
PRODUCTS_PER_US = 50_000.0
"""Multiply-adds of a matrix product: 25,000 for one row, 100,000 for 64 to 1,024."""
LANES = 16
"""A matrix product computes so many outputs at once; fewer cost as much."""
TOLERANCE = 0.02
"""Differences smaller than this share are below what the estimate can tell."""
BATCHES = (1, 4096)
"""Rows at which a rewrite must pay."""

_FREE = frozenset({operator.getitem, aten.sym_size.int, aten.expand.default, aten.clone.default, aten.detach.default})
_VIEWS = frozenset(
    {
        aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
        aten.squeeze.default, aten.flatten.using_ints,
    }
)  # fmt: skip


@dataclass(frozen=True)
class ServingCost:
    """Microseconds for one call, and for every row of it."""

    per_call: float
    per_row: float

    def at(self, rows: int) -> float:
        """Microseconds at a batch size."""
        return self.per_call + rows * self.per_row

    def beats(self, other: ServingCost) -> bool:
        """Whether this is cheaper at some batch size and, within what an estimate can tell, dearer at none."""
        ratios = [self.at(rows) / max(other.at(rows), 1e-9) for rows in BATCHES]
        return max(ratios) <= 1 + TOLERANCE and min(ratios) < 1 - TOLERANCE


def products(inputs: int, outputs: int) -> int:
    """Multiply-adds per row of a Linear, unused lanes counted."""
    return inputs * math.ceil(outputs / LANES) * LANES


def serving_cost(module: GraphModule) -> ServingCost:
    """The estimate for all nodes that depend on the batch."""
    varying: list[Node] = []
    seen: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(operand in seen for operand in node.all_input_nodes):
            seen.add(node)
            varying.append(node)
    return cost_of(varying)


def cost_of(nodes: Iterable[Node]) -> ServingCost:
    """The estimate for some nodes."""
    per_call, per_row = 0.0, 0.0
    for node in nodes:
        counts = node.op == "call_function" and isinstance(value_of(node), (Tensor, list, tuple))
        if not counts or node.target in _FREE:
            continue
        per_call += LAUNCH_US
        if node.target not in _VIEWS:
            per_row += _row_us(node)
    return ServingCost(per_call, per_row)


def _row_us(node: Node) -> float:
    value = value_of(node)
    if not isinstance(value, Tensor):
        return 0.0
    shape = tuple(value.shape)
    features = math.prod(size for size in shape if isinstance(size, int))
    copied = features * value.element_size() / BYTES_PER_US
    if node.target in (aten.linear.default, aten.mm.default, aten.addmm.default, aten.matmul.default):
        source = shape_of(_first(node)) or (1,)
        return copied + features * (source[-1] if isinstance(source[-1], int) else 1) / PRODUCTS_PER_US
    if node.target is aten.embedding.default:
        return copied + features / shape[-1] * 3 * PIECE_US
    if node.target is aten.index_select.default:
        axis = int(args_of(node)[1])
        return copied + features / math.prod(shape[axis + 1 :]) * PIECE_US
    if node.target in (aten.slice.Tensor, aten.cat.default, aten.stack.default, aten.select.int):
        return copied + _pieces(node) * PIECE_US
    return copied


def _first(node: Node) -> Node:
    return next(operand for operand in node.all_input_nodes if value_of(operand) is not None)


def _pieces(node: Node) -> int:
    """Contiguous pieces per row that a cut or a concat copies."""
    operands, *rest = args_of(node)
    if isinstance(operands, (list, tuple)) and len(operands) > 1:
        return len(operands)
    source = shape_of(_first(node)) or ()
    axis = int(rest[0]) if rest and isinstance(rest[0], int) else 0
    axis += len(source) if axis < 0 else 0
    before = source if node.target is aten.select.int else shape_of(node) or ()
    return math.prod(size for size in before[1:axis] if isinstance(size, int))
