"""The value of a node, ``meta["val"]``: what its operator makes of its operands' values, symbolic in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from passes.graph.nodes import _mode_of, fake_mode, value_of

COMPUTED = "afm_fx_computed"


"""Key in ``node.meta`` under which it stands what the node's value was computed from."""


def compute_value(node: Node) -> Any:
    """The node's value from its arguments' values, in the graph's fake mode.

    Composite operators take torch's Python decompositions: the ones in C++ compare sizes (``pad`` does), which would
    fix the symbolic batch to the example's, here and in every graph that shares the symbol.
    """
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta.get("val"))
    mode = next((mode for each in node.all_input_nodes if (mode := _mode_of(each)) is not None), None)
    with mode or fake_mode(node.graph), enable_python_dispatcher(), torch.no_grad():
        return cast(Callable[..., Any], node.target)(*args, **kwargs)


def set_value(node: Node) -> None:
    """Gives a node the value that its operator makes of its operands' values."""
    node.meta["val"] = compute_value(node)
    note_computed(node)


def note_computed(node: Node) -> None:
    """Remembers that the node's value is what its operator makes of its operands' values."""
    node.meta[COMPUTED] = _call_on_values(node)


def is_computed(node: Node) -> bool:
    """Whether the node's value is known to be what its operator makes of its operands' values.

    A copy of a node keeps what is known of it: values are compared as objects, which copies of a graph share.
    """
    known, now = node.meta.get(COMPUTED), _call_on_values(node)
    return known is not None and len(known) == len(now) and all(map(_alike, known, now))


def _call_on_values(node: Node) -> tuple[Any, ...]:
    """The node's value, its operator and its arguments, flat, every operand's value in its place."""
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    values = (value_of(leaf) if isinstance(leaf, Node) else leaf for leaf in leaves)
    return (value_of(node), node.target, structure, *values)


def _alike(one: Any, other: Any) -> bool:
    """Whether two leaves are the same object, or equal numbers, names or structures of one type."""
    comparable = isinstance(one, int | float | str | pytree.TreeSpec)
    return one is other or (comparable and type(one) is type(other) and one == other)
