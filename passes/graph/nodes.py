"""Reading ATen nodes: their values, shapes, arguments and constants, and calls with a constant weight."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

PROVENANCE = "afm_fx"


"""Key in ``node.meta`` under which a pass says which rule made a node."""


FACTORED_SITE = "afm_fx_site"


"""Key in ``node.meta`` under which the node that gives a site's code says (site name, code width)."""


NARROWED_LAYER = "afm_fx_narrowed"


"""Key in ``node.meta`` under which the activation of a hidden layer that has lost units says (layer, units left)."""


aten = torch.ops.aten


def fake_mode(graph: Graph) -> FakeTensorMode:
    """The fake tensor mode in which the graph's values live (a fresh one for a graph without values)."""
    for node in graph.nodes:
        mode = _mode_of(node)
        if mode is not None:
            return mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def _mode_of(node: Node) -> FakeTensorMode | None:
    """The mode of a node's value, None where it is no fake tensor."""
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(leaf, torch._subclasses.FakeTensor):
            return leaf.fake_mode
    return None


def value_of(node: Node) -> Any:
    """The node's fake value."""
    return node.meta.get("val")


def shape_of(node: Node) -> tuple[Any, ...] | None:
    """The node's shape (ints and symbols), None where it is not one tensor."""
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def rank_of(node: Any) -> int | None:
    """The number of axes of a node, None where it is not one tensor."""
    shape = shape_of(node) if isinstance(node, Node) else None
    return None if shape is None else len(shape)


def known_true(condition: bool | torch.SymBool) -> bool:
    """Whether a comparison of sizes holds whatever the batch size is."""
    if isinstance(condition, bool):
        return condition
    # Not imported above, for that takes long: what made a symbolic comparison has loaded it.
    return bool(torch.fx.experimental.symbolic_shapes.statically_known_true(condition))


def equal_sizes(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether sizes are equal for every batch size, without adding a guard."""
    return len(one) == len(other) and all(map(known_true, map(operator.eq, one, other)))


def same_form(one: Node, other: Node) -> bool:
    """Whether two nodes are tensors that are known to have the same shape and number format."""
    left, right = shape_of(one), shape_of(other)
    if left is None or right is None or value_of(one).dtype != value_of(other).dtype:
        return False
    return equal_sizes(left, right)


def is_random(node: Node) -> bool:
    """Whether two evaluations of a node may differ (attention that drops nothing is tagged as random, but is not)."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    if node.target is not aten.scaled_dot_product_attention.default:
        return True
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0)
    return not isinstance(dropout, (int, float)) or dropout != 0


def get_attribute(module: nn.Module, target: str) -> Any:
    """The tensor at a dotted name."""
    for part in target.split("."):
        module = getattr(module, part)
    return module


def args_of(node: Node) -> tuple[Any, ...]:
    """The node's positional arguments, of whatever type they are."""
    return node.args


def argument(node: Node, position: int, default: Any) -> Any:
    """A positional argument or its default."""
    return node.args[position] if len(node.args) > position else default


def constant_of(module: GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor behind a ``get_attr`` node, or None."""
    if isinstance(node, Node) and node.op == "get_attr":
        attribute = get_attribute(module, str(node.target))
        return attribute if isinstance(attribute, torch.Tensor) else None
    return None


def is_call(node: object, *targets: Any) -> TypeGuard[Node]:
    """Whether something is a call of one of these operators that gives all arguments by position."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets and not node.kwargs


def is_read_by(constant: Node, readers: Collection[Node]) -> bool:
    """Whether nothing but these nodes reads a constant; a call whose result nobody reads is no reader."""
    return all(user in readers or (user.op == "call_function" and not user.users) for user in constant.users)


@dataclass(frozen=True, eq=False)
class WeightedCall:
    """A call of an operator with a constant weight: a Linear or another product, or a lookup in a table.

    Attributes:
        source: what varies: features ``[..., inputs]``, or ids.
        weight: of a product ``[outputs, inputs]``, whichever way round its operator takes it; of a lookup the table.
        start: what an ``addmm`` starts from.
    """

    node: Node
    source: Node
    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    start: Node | None = None

    @property
    def weight_node(self) -> Node:
        """What holds the weight, the way round its operator takes it."""
        return cast(Node, self.node.args[SOURCE_AND_WEIGHT[self.node.target][1]])

    @property
    def is_only_reader(self) -> bool:
        """Whether the weight goes where this call goes; another constant made of one that stays is one more to keep."""
        return is_read_by(self.weight_node, {self.node})


SOURCE_AND_WEIGHT: dict[Any, tuple[int, int]] = {
    aten.linear.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.embedding.default: (1, 0),
}


"""Positions of what varies and of the weight among an operator's arguments."""


def weighted_call(module: GraphModule, node: object, *targets: Any) -> WeightedCall | None:
    """Matches a call of one of these operators whose weight (and bias) is a constant, and whose source is none.

    Args:
        module: the graph module that holds the constants.
        node: any node, or an argument of one.
        targets: some of ``linear``, ``mm``, ``matmul``, ``addmm`` and ``embedding``, in their ATen forms.

    Returns:
        None where it is another operator, or where the weight has not two axes.
    """
    if not is_call(node, *targets):
        return None
    first, second = (node.args[place] for place in SOURCE_AND_WEIGHT[node.target])
    weight = constant_of(module, second)
    if weight is None or weight.dim() != 2 or not isinstance(first, Node) or constant_of(module, first) is not None:
        return None
    name = str(cast(Node, second).target)
    if node.target is aten.embedding.default:
        return WeightedCall(node, first, name, weight)
    if node.target is not aten.linear.default:
        start = node.args[0] if node.target is aten.addmm.default else None
        return WeightedCall(node, first, name, weight.mT, start=cast(Node | None, start))
    given = node.args[2] if len(node.args) > 2 else None
    bias = constant_of(module, given)
    return None if given is not None and bias is None else WeightedCall(node, first, name, weight, bias)
