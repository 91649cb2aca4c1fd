"""Counts the multiply-adds of every node of a graph by running it on tensors without data.

Counted are matrix products, convolutions and attention, as :mod:`torch.utils.flop_counter` knows them, and one for
every number that an elementwise product makes. Sums, lookups and curves are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from passes.graph import RewriteError, aten, value_of

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
    counter = FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counter:
        run = _BlankRun(module, counter)
        run.run(enable_io_processing=False)
    return {node: operations / _PER_MULTIPLY_ADD / run.rows for node, operations in run.operations.items()}


class _BlankRun(Interpreter):
    """Runs a graph on inputs and parameters without data, and notes the operations of every node."""

    def __init__(self, module: GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.counter, self.operations, self.rows = counter, dict[Node, float](), ROWS

    def run_node(self, n: Node) -> Any:
        if n.op in ("placeholder", "get_attr"):
            value = pytree.tree_map(_without_data, value_of(n))
            if n.op == "placeholder" and isinstance(value, Tensor) and value.dim():
                self.rows = value.shape[0]  # of a graph that takes only one size of batch, this one
            return value
        before = self.counter.get_total_flops()
        try:
            value = super().run_node(n)
        except Exception as error:  # fake tensors raise many unrelated types
            raise RewriteError(f"multiply-adds of '{n.name}' ({n.target}) cannot be counted: {error}") from error
        spent = self.counter.get_total_flops() - before
        if spent:
            self.operations[n] = spent
        return value


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


def _without_data(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty([_size(size) for size in leaf.shape], dtype=leaf.dtype, device=leaf.device)


def _size(size: Any) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, ROWS)))
