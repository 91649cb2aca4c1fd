"""What a pass did to a graph: which nodes it made, and that it left all others as they were.

A picture of the graph is taken before the pass and compared with the result. A node that is still there must have its
name, operator and arguments; an operand may have been replaced by one of the same shape and dtype. A node that was not
there must say which rule made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from passes.errors import GraphInvariantError
from passes.graph_checks import same_value
from passes.graph_tools import PROVENANCE, value_of

_OPERAND = object()
"""Stands in a picture where a node stood among the arguments."""


@dataclass(frozen=True)
class NodePicture:
    """A node as it was.

    Attributes:
        op: what it does in torch's words.
        target: its operator, or the name of its tensor.
        arguments: the arguments with every node left out.
        operands: names of those nodes, in order.
        value: its ``meta["val"]``.
    """

    op: str
    target: Any
    arguments: Any
    operands: tuple[str, ...]
    value: Any

    def same_call(self, other: NodePicture) -> bool:
        """Whether both do the same to the same nodes."""
        mine = (self.op, self.target, self.arguments, self.operands)
        return mine == (other.op, other.target, other.arguments, other.operands)


@dataclass(frozen=True)
class GraphPicture:
    """A graph as it was: its nodes by name, in order, and the names of its module's state."""

    nodes: Mapping[str, NodePicture]
    state: tuple[str, ...]

    def same(self, other: GraphPicture) -> bool:
        """Whether graph and state are the same, names included."""
        return (
            self.state == other.state
            and list(self.nodes) == list(other.nodes)
            and all(picture.same_call(other.nodes[name]) for name, picture in self.nodes.items())
        )


def picture_of(module: GraphModule) -> GraphPicture:
    """Takes a picture."""
    state = (
        *(name for name, _ in module.named_parameters(remove_duplicate=False)),
        *(name for name, _ in module.named_buffers(remove_duplicate=False)),
        *(name for name, _ in module.named_modules(remove_duplicate=False)),
    )
    return GraphPicture({node.name: _node_picture(node) for node in module.graph.nodes}, state)


def _node_picture(node: Node) -> NodePicture:
    operands: list[str] = []
    arguments = _without_nodes((node.args, node.kwargs), operands)
    return NodePicture(node.op, node.target, arguments, tuple(operands), value_of(node))


def _without_nodes(argument: Any, operands: list[str]) -> Any:
    if isinstance(argument, Node):
        operands.append(argument.name)
        return _OPERAND
    if isinstance(argument, (list, tuple)):
        return tuple(_without_nodes(item, operands) for item in argument)
    if isinstance(argument, dict):
        return tuple((key, _without_nodes(item, operands)) for key, item in argument.items())
    if isinstance(argument, slice):
        return ("slice", *(_without_nodes(item, operands) for item in (argument.start, argument.stop, argument.step)))
    return argument


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
        before: the graph as the pass was given it.
        after: the result.
        module: the result itself.
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
