"""Invariants of a graph that passes hand on to each other: well formed and with right values.

A node's ``meta["val"]`` is checked by computing it again from its operands' values. What was computed once is not
computed a second time as long as the node's operator, arguments, operands' values and own value are the same, so that a
chain of passes pays for a node once, not once per pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.graph.errors import GraphInvariantError
from passes.graph.nodes import aten, get_attribute, known_true, value_of
from passes.graph.values import compute_value, is_computed, note_computed

_DEPENDS_ON_DATA = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


def check_well_formed(module: GraphModule) -> None:
    """Checks names, order and uses of the nodes, and that every ``get_attr`` and ``call_module`` finds its target.

    Raises:
        GraphInvariantError: with what torch found.
    """
    for node in module.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            try:
                get_attribute(module, str(node.target))
            except AttributeError as error:
                raise GraphInvariantError(
                    f"node '{node.name}' names '{node.target}', which the module does not have"
                ) from error
    try:
        module.graph.lint()
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise GraphInvariantError(f"the graph is not well formed: {error}") from error


def check_values(module: GraphModule) -> None:
    """Checks that every node has its value in ``meta["val"]``, of the shape and dtype that its operator gives.

    Raises:
        GraphInvariantError: naming the first node whose value is missing or wrong.
    """
    for node in module.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_function" and _has_result(node)):
            if "val" not in node.meta or (node.op == "call_function" and value_of(node) is None):
                raise GraphInvariantError(_missing(node))
        elif node.op == "get_attr":
            _check_attribute(module, node)
        if node.op == "call_function" and _can_be_computed(node) and not is_computed(node):
            _check_computed(node)


def _has_result(node: Node) -> bool:
    """Whether a call gives anything (assertions do not)."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.returns)
    return not isinstance(target, torch._ops.HigherOrderOperator)


def _missing(node: Node) -> str:
    return (
        f"node '{node.name}' ({node.target}) has no value in meta['val']; whoever made it must set it, for example "
        "with torch.fx.passes.fake_tensor_prop.FakeTensorProp"
    )


def _check_attribute(module: GraphModule, node: Node) -> None:
    tensor, value = get_attribute(module, str(node.target)), value_of(node)
    if not isinstance(tensor, torch.Tensor):
        return
    if value is None:
        raise GraphInvariantError(_missing(node))
    if not _same(value, tensor):
        raise GraphInvariantError(
            f"node '{node.name}': meta['val'] is {_shown(value)}, the tensor '{node.target}' is {_shown(tensor)}"
        )


def _can_be_computed(node: Node) -> bool:
    """Whether the value follows from the operands' alone, and asking for it changes nothing."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema
        return (
            bool(schema.returns) and not schema.is_mutable and not any(tag in target.tags for tag in _DEPENDS_ON_DATA)
        )
    return callable(target) and not isinstance(target, torch._ops.HigherOrderOperator)


def _check_computed(node: Node) -> None:
    if node.target is aten.sym_size.int and isinstance(value_of(node), int | torch.SymInt):
        return
    try:
        computed = compute_value(node)
    except Exception as error:
        raise GraphInvariantError(
            f"node '{node.name}' ({node.target}) cannot be computed from the values of its operands: {error}"
        ) from error
    found, expected = pytree.tree_leaves(value_of(node)), pytree.tree_leaves(computed)
    if len(found) != len(expected) or not all(map(_same, found, expected)):
        raise GraphInvariantError(
            f"node '{node.name}' ({node.target}): meta['val'] is {_shown(value_of(node))}, but its operands give "
            f"{_shown(computed)}"
        )
    note_computed(node)


def same_value(one: Any, other: Any) -> bool:
    """Whether two values agree in structure, shapes and dtypes for every batch size."""
    left, right = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(left) == len(right) and all(map(_same, left, right))


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return isinstance(one, torch.Tensor) == isinstance(other, torch.Tensor)
    return one.dtype == other.dtype and same_sizes(one.shape, other.shape)


def same_sizes(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether shapes are equal for every batch size; sizes that only the data tell are taken for equal."""
    return len(one) == len(other) and all(map(_same_size, one, other))


def _same_size(one: Any, other: Any) -> bool:
    """Whether two sizes are equal, without adding a guard; sizes that only the data tell are taken for equal."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    if known_true(one == other):
        return True
    return any(isinstance(size, torch.SymInt) and not size.node.has_hint() for size in (one, other))


def _shown(value: Any) -> str:
    shown = [
        f"{str(leaf.dtype).removeprefix('torch.')}[{', '.join(str(size) for size in leaf.shape)}]"
        if isinstance(leaf, torch.Tensor)
        else type(leaf).__name__
        for leaf in pytree.tree_leaves(value)
    ]
    return shown[0] if len(shown) == 1 else f"({', '.join(shown)})"
