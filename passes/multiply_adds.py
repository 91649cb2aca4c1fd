"""Counts the multiply-adds of every node of a graph by running it on tensors without data.

Counted are matrix products, convolutions and attention, as :mod:`torch.utils.flop_counter` knows them, and one for
every number that an elementwise product makes. Sums, lookups and curves are not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from passes.errors import RewriteError
from passes.graph_tools import aten, value_of

ROWS = 2
"""Rows of the batch that is run: one would be a special case to many operators."""

_PER_MULTIPLY_ADD = 2
"""Operations that torch counts for one."""


def _elementwise(*_: Any, out_shape: Any = None, **__: Any) -> int:
    return _PER_MULTIPLY_ADD * int(math.prod(out_shape))


_ELEMENTWISE = dict.fromkeys((aten.mul, aten.square, aten.pow), _elementwise)


def multiply_adds(module: GraphModule) -> dict[Node, float]:
    """Multiply-adds of every node that does any, for one row of a batch.

    Args:
        module: functional ATen with ``meta["val"]`` on its nodes; parameters may be without data.

    Raises:
        RewriteError: a node cannot be run without data.
    """
    values: dict[Node, Any] = {}
    found: dict[Node, float] = {}
    rows = ROWS
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _counter() as counter:
        for node in module.graph.nodes:
            if node.op == "output":
                break
            if node.op in ("placeholder", "get_attr"):
                values[node] = _blank(node)
                rows = _rows(node, rows)
                continue
            before = counter.get_total_flops()
            try:
                values[node] = _run(node, values)
            except Exception as error:  # fake tensors raise many unrelated types
                raise RewriteError(
                    f"multiply-adds of '{node.name}' ({node.target}) cannot be counted: {error}"
                ) from error
            spent = counter.get_total_flops() - before
            if spent:
                found[node] = spent / _PER_MULTIPLY_ADD
    return {node: count / rows for node, count in found.items()}


def uses_of_parameters(module: GraphModule, counts: Mapping[Node, float]) -> dict[str, float]:
    """How many multiply-adds a row each number of a parameter takes part in, by the parameter's qualified name.

    Only products of something constant with something that depends on the batch count.
    """
    ancestors: dict[Node, frozenset[Node] | None] = {}
    uses: dict[str, float] = {}
    for node in module.graph.nodes:
        ancestors[node] = _parameters_behind(node, ancestors)
        if node not in counts or ancestors[node] is not None:
            continue
        for operand in node.all_input_nodes:
            for parameter in ancestors[operand] or ():
                size = math.prod(value_of(operand).shape)
                uses[str(parameter.target)] = uses.get(str(parameter.target), 0.0) + counts[node] / max(size, 1)
            if ancestors[operand]:
                break  # a product has one constant side; what else is constant in it is a bias
    return uses


def _parameters_behind(node: Node, known: Mapping[Node, frozenset[Node] | None]) -> frozenset[Node] | None:
    """The parameters that a constant node is made of; None for a node that depends on the batch."""
    if node.op == "get_attr":
        return frozenset({node})
    behind = [known[operand] for operand in node.all_input_nodes]
    if node.op == "placeholder" or any(each is None for each in behind):
        return None
    return frozenset[Node]().union(*(each for each in behind if each is not None))


@contextlib.contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE) as counter:
        yield counter


def _run(node: Node, values: Mapping[Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _blank(node: Node) -> Any:
    """A value of the node's shape, with :data:`ROWS` rows for the batch, without data."""
    return pytree.tree_map(_without_data, value_of(node))


def _without_data(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty([_size(size) for size in leaf.shape], dtype=leaf.dtype, device=leaf.device)


def _size(size: Any) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, ROWS)))


def _rows(node: Node, otherwise: int) -> int:
    """The batch of a graph that takes only one size."""
    value = value_of(node)
    if node.op != "placeholder" or not isinstance(value, Tensor) or value.dim() == 0:
        return otherwise
    return _size(value.shape[0])
