"""What a pass did to a graph: which nodes it made, and that it left all others as they were.

A picture of the graph is taken before the pass and compared with the result. A node that is still there must have its
name, operator and arguments; an operand may have been replaced by one of the same shape and dtype. A node that was not
there must say which rule made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.graph.errors import GraphInvariantError
from passes.graph.graph_checks import same_value
from passes.graph.nodes import PROVENANCE, value_of

_OPERAND = object()
"""Stands in a picture where a node stood among the arguments."""


@dataclass(frozen=True)
class NodePicture:
    """A node as it was; two are equal where both do the same to the same nodes.

    Attributes:
        arguments: the arguments with every node left out.
        value: its ``meta["val"]``.
    """

    op: str
    target: Any
    arguments: Any
    operands: tuple[str, ...]
    value: Any = field(compare=False)


@dataclass(frozen=True)
class GraphPicture:
    """A graph as it was: its nodes by name, in order, and the names of its module's state."""

    nodes: Mapping[str, NodePicture]
    state: tuple[str, ...]

    def same(self, other: GraphPicture) -> bool:
        """Whether graph and state are the same, names and order included."""
        return self.state == other.state and list(self.nodes.items()) == list(other.nodes.items())


def picture_of(module: GraphModule) -> GraphPicture:
    """Takes a picture."""
    kinds = (module.named_parameters, module.named_buffers, module.named_modules)
    state = tuple(name for named in kinds for name, _ in named(remove_duplicate=False))
    return GraphPicture({node.name: _node_picture(node) for node in module.graph.nodes}, state)


def _node_picture(node: Node) -> NodePicture:
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    arguments = (structure, *(_OPERAND if isinstance(leaf, Node) else leaf for leaf in leaves))
    operands = tuple(leaf.name for leaf in leaves if isinstance(leaf, Node))
    return NodePicture(node.op, node.target, arguments, operands, value_of(node))


def check_change(
    before: GraphPicture,
    after: GraphPicture,
    module: GraphModule,
    retargets: Mapping[Any, Any],
    *,
    keeps_inputs: bool = True,
) -> None:
    """Checks what a pass did.

    Args:
        retargets: operators that the pass may replace in place, and by what.
        keeps_inputs: whether the inputs must be the same.

    Raises:
        GraphInvariantError: an input is gone, a node that stayed was changed, or a new one does not say who made it.
    """
    inputs, found = (_inputs(picture) for picture in (before, after))
    if keeps_inputs and inputs != found:
        raise GraphInvariantError(f"the inputs were {inputs}, now they are {found}")
    for node in module.graph.nodes:
        was, now = before.nodes.get(node.name), after.nodes[node.name]
        if was is None:
            if PROVENANCE not in node.meta:
                raise GraphInvariantError(f"new node '{node.name}' ({node.target}) does not say which rule made it")
        elif (was.op, retargets.get(was.target, was.target), was.arguments) != (now.op, now.target, now.arguments):
            raise GraphInvariantError(f"node '{node.name}' was {_call(was)}, now it is {_call(now)}")
    for name, old, new in replaced_operands(before, after):
        if not same_value(before.nodes[old].value, after.nodes[new].value):
            raise GraphInvariantError(f"node '{name}' read '{old}', now it reads '{new}' of another shape or dtype")


def replaced_operands(before: GraphPicture, after: GraphPicture) -> Iterator[tuple[str, str, str]]:
    """(node, operand before, operand now) for every operand of a node that stayed, where it is another one now."""
    for name, now in after.nodes.items():
        was = before.nodes.get(name)
        if was is not None and was.operands != now.operands:
            for old, new in zip(was.operands, now.operands, strict=True):
                if old != new:
                    yield name, old, new


def _inputs(picture: GraphPicture) -> list[str]:
    return [name for name, node in picture.nodes.items() if node.op == "placeholder"]


def _call(picture: NodePicture) -> str:
    return f"{picture.op} {picture.target} of {list(picture.operands)}"
