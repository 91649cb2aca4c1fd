"""Products with a constant matrix in one form.

Replaces ``conv1d(x, W, b)`` with a kernel of one        with ``transpose(linear(transpose(x), W, b))``,
         ``matmul(W, x)`` of columns x [..., n, 1]       with ``unsqueeze(linear(squeeze(x), W))``,

where ``W`` is a parameter, or what ``select`` and ``t`` take of one: a layer of a stack of matrices. Each such matrix
becomes a parameter of its own that shares the model's memory. A parameter that anything else reads too stays as it is.
The results differ by rounding alone. :mod:`passes.canonical.pointwise_convolutions` is the way back for convolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from passes.graph import (
    PROVENANCE,
    GraphPass,
    argument,
    aten,
    call,
    constant_of,
    derived_name,
    parameter,
    replace_node,
    shape_of,
)

RULE = "linear form"

CHANNELS = "its features are channels, in front of positions, and are decoded where they stand"
"""Why the output of a convolution is restored."""

PART_OF = "afm_fx_part"
"""Key in ``node.meta`` under which the node of a new parameter says which part of which old one it is."""


@dataclass(frozen=True)
class Part:
    """A matrix within a parameter of the model.

    Attributes:
        steps: what leads from the parameter to the matrix: the index of a ``select`` on axis 0, "t" or "squeeze".
    """

    name: str
    steps: tuple[int | str, ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The matrix [outputs, inputs] within the parameter, which shares its memory."""
        for step in self.steps:
            tensor = tensor[step] if isinstance(step, int) else tensor.t() if step == "t" else tensor.squeeze(-1)
        return tensor

    @property
    def word(self) -> str:
        """What tells it apart from the other parts of its parameter in names."""
        words = [f"{step}" for step in self.steps if step != "squeeze"]
        return "_".join(words) or "linear"


@dataclass(frozen=True)
class _Product:
    """A product of a matrix with features in front of positions, and where the matrix comes from."""

    node: Node
    source: Node
    bias: Node | None
    origin: Node
    part: Part
    tensor: nn.Parameter


class UnifyLinears(GraphPass):
    """Writes pointwise convolutions and products of a constant matrix with columns as Linears."""

    def rewrite(self, graph_module: GraphModule) -> None:
        products = list(_products(graph_module))
        known = {product.node for product in products}
        ready = [product for product in products if _is_read_by(product.origin, known)]
        made: dict[Part, Node] = {}
        for product in ready:
            _rewrite(graph_module, product, made)


def parts_of(module: GraphModule) -> dict[str, Part]:
    """For every parameter that is a part of one of the model's, by its name: which part of which."""
    return {str(node.target): node.meta[PART_OF] for node in module.graph.nodes if PART_OF in node.meta}


def makes_channels(node: Node) -> bool:
    """Whether a node puts the features of a Linear that was a convolution in front of the positions again."""
    source = node.args[0] if node.args else None
    return node.meta.get(PROVENANCE) == RULE and isinstance(source, Node) and source.target is aten.linear.default


def _products(module: GraphModule) -> Iterator[_Product]:
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        last: tuple[str, ...] = ()
        if node.target is aten.conv1d.default and _is_pointwise(node):
            source, weight, bias, last = node.args[0], node.args[1], argument(node, 2, None), ("squeeze",)
        elif node.target is aten.matmul.default and _is_column(node.args[1]):
            weight, source, bias = node.args[0], node.args[1], None
        else:
            continue
        origin, steps = _part_of(weight)
        tensor = constant_of(module, origin)
        if not isinstance(tensor, nn.Parameter) or not isinstance(source, Node) or source.op == "get_attr":
            continue
        part = Part(str(origin.target), (*steps, *last))
        if part.of(tensor).dim() == 2:
            yield _Product(node, source, bias if isinstance(bias, Node) else None, origin, part, tensor)


def _is_pointwise(node: Node) -> bool:
    """Whether a convolution reads one position at a time, all channels of it."""
    source, weight = (shape_of(each) if isinstance(each, Node) else None for each in node.args[:2])
    if source is None or len(source) != 3 or weight is None or weight[-1] != 1:
        return False
    stride, padding, dilation = (argument(node, place, usual) for place, usual in ((3, 1), (4, 0), (5, 1)))
    return (_one(stride), _one(padding), _one(dilation), argument(node, 6, 1)) == (1, 0, 1, 1)


def _one(value: object) -> object:
    """The number of a list of one."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _is_column(operand: object) -> bool:
    shape = shape_of(operand) if isinstance(operand, Node) else None
    return shape is not None and len(shape) == 3 and isinstance(shape[2], int) and shape[2] == 1


def _part_of(weight: Any) -> tuple[Node, tuple[int | str, ...]]:
    """The node that a matrix is a part of, and what leads from there to the matrix."""
    steps: list[int | str] = []
    while (step := _step(weight)) is not None:
        steps.insert(0, step)
        weight = weight.args[0]
    return weight, tuple(steps)


def _step(node: Node) -> int | str | None:
    if node.target is aten.select.int and node.args[1] == 0 and isinstance(node.args[2], int):
        return node.args[2]
    return "t" if node.target is aten.t.default else None


def _is_read_by(origin: Node, products: Collection[Node]) -> bool:
    """Whether a parameter is read by these products alone, whole or in parts, and by each as its matrix."""
    pending = [origin]
    while pending:
        node = pending.pop()
        for user in node.users:
            if _step(user) is not None:
                pending.append(user)
            elif user not in products:
                return False
    return True


def _rewrite(module: GraphModule, product: _Product, made: dict[Part, Node]) -> None:
    node, graph = product.node, module.graph
    weight = made.get(product.part)
    if weight is None:
        matrix, trainable = product.part.of(product.tensor.detach()), product.tensor.requires_grad
        name = derived_name(product.part.name, product.part.word)
        weight = made[product.part] = parameter(module, name, matrix, rule=RULE, trainable=trainable)
        weight.meta[PART_OF] = product.part
    columns = node.target is aten.matmul.default
    away, back = ((aten.squeeze.dim, 2), (aten.unsqueeze.default, 2)) if columns else (_SWAP, _SWAP)
    with graph.inserting_before(node):
        rows = call(graph, away[0], product.source, *away[1:], rule=RULE, like=node)
        bias = () if product.bias is None else (product.bias,)
        features = call(graph, aten.linear.default, rows, weight, *bias, rule=RULE, like=node)
        result = call(graph, back[0], features, *back[1:], rule=RULE, like=node)
    replace_node(node, result)


_SWAP = (aten.transpose.int, 1, 2)
