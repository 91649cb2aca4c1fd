"""Hidden units that are constant on real rows, and a graph without them.

Replaces ``linear(act(linear(x, W, b)), V, c)``
with     ``linear(act(linear(x, W[k], b[k])), V[:, k], c + V[:, d] h)``

where ``k`` are the units that are kept, ``d`` those that are dropped, and ``h`` what the activation of those is on real
rows: 0 for a unit that a ReLU never lets through. Exact on all rows on which the dropped units are ``h``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.graph import (
    NARROWED_LAYER,
    GraphPass,
    TableIndexError,
    args_of,
    aten,
    call,
    constant_of,
    drop_unused_state,
    parameter,
    weighted_call,
)
from passes.sites.sites import site_name

RULE = "drop units"

ACTIVATIONS = frozenset(
    {
        aten.relu.default, aten.relu6.default, aten.leaky_relu.default, aten.sigmoid.default, aten.tanh.default,
        aten.gelu.default, aten.silu.default, aten.elu.default, aten.selu.default, aten.softplus.default,
        aten.hardtanh.default, aten.hardswish.default, aten.hardsigmoid.default, aten.mish.default, aten.clone.default,
    }
)  # fmt: skip
"""Operators that take every feature through one and the same function."""


@dataclass(frozen=True)
class Hidden:
    """A Linear whose outputs only an activation reads, and that only Linears.

    Attributes:
        name: of the first Linear, as a site.
        activations: the nodes up to the activation's result, in order.
        units: number of outputs of the first Linear.
    """

    name: str
    linear: Node
    activations: tuple[Node, ...]
    consumers: tuple[Node, ...]
    units: int


@dataclass(frozen=True)
class Units:
    """Which units of a hidden layer stay.

    Attributes:
        kept: [k] int64, ascending.
        constants: [units] float64, what the activation is for a unit that does not stay (others are not read).
    """

    kept: Tensor
    constants: Tensor

    @property
    def dropped(self) -> Tensor:
        """[d] int64, ascending."""
        mask = torch.ones(self.constants.shape[0], dtype=torch.bool)
        mask[self.kept] = False
        return mask.nonzero().flatten()


class DropUnits(GraphPass):
    """Replaces hidden layers with narrower ones, whose weights keep their names.

    A layer that has as few units already is left as it is, factored or not, so that a second run changes nothing.

    Args:
        units: by name of the hidden layer's first Linear.
    """

    def __init__(self, units: Mapping[str, Units]) -> None:
        super().__init__()
        self.units = dict(units)

    def rewrite(self, graph_module: GraphModule) -> None:
        hidden = {each.name: each for each in hidden_layers(graph_module)}
        made: dict[Node, Units] = {}  # by the Linear that makes units, and by those that read them
        read: dict[Node, Units] = {}
        narrowed = dict(node.meta[NARROWED_LAYER] for node in graph_module.graph.nodes if NARROWED_LAYER in node.meta)
        left = {name: units for name, units in self.units.items() if narrowed.get(name) != len(units.kept)}
        for name, units in left.items():
            layer = hidden.get(name)
            if layer is None:
                raise TableIndexError(f"the graph has no hidden layer '{name}' whose units only Linears read")
            if units.constants.shape[0] != layer.units or not len(units.kept):
                raise TableIndexError(
                    f"'{name}' has {layer.units} units, those to keep are {len(units.kept)} of {len(units.constants)}"
                )
            made[layer.linear] = units
            read.update(dict.fromkeys(layer.consumers, units))
        moved = {node: (name, len(units.kept)) for name, units in left.items() for node in hidden[name].activations}
        for node in list(graph_module.graph.nodes):
            is_linear = node in made or node in read
            if is_linear or node in moved:
                with graph_module.graph.inserting_before(node), torch.no_grad():
                    narrow = (
                        _cut_linear(graph_module, node, made.get(node), read.get(node)) if is_linear else _again(node)
                    )
                if node in moved:
                    narrow.meta[NARROWED_LAYER] = moved[node]
                node.replace_all_uses_with(narrow)
                graph_module.graph.erase_node(node)


def hidden_layers(module: GraphModule) -> Iterator[Hidden]:
    """The hidden layers of a graph whose units could be dropped, in graph order."""
    own = set(_own_linears(module))
    for node in module.graph.nodes:
        if node not in own:
            continue
        activations: list[Node] = []
        reader = node
        while len(reader.users) == 1 and (after := next(iter(reader.users))).target in ACTIVATIONS:
            activations.append(after)
            reader = after
        consumers = tuple(reader.users)
        if activations and consumers and all(each in own and each.args[0] is reader for each in consumers):
            weight = args_of(node)[1]
            units = int(module.get_parameter(str(weight.target)).shape[0])
            yield Hidden(site_name(str(weight.target)), node, tuple(activations), consumers, units)


def _own_linears(module: GraphModule) -> Iterator[Node]:
    """The Linears whose weight is a parameter that nothing else reads."""
    readers: Counter[int] = Counter()
    for node in module.graph.nodes:
        tensor = constant_of(module, node)
        if tensor is not None:
            readers[id(tensor)] += len(node.users)
    for node in module.graph.nodes:
        linear = weighted_call(module, node, aten.linear.default)
        if linear is not None and isinstance(linear.weight, nn.Parameter) and readers[id(linear.weight)] == 1:
            yield node


def _cut_linear(module: GraphModule, node: Node, made: Units | None, read: Units | None) -> Node:
    """The Linear without the units that leave among its outputs and its inputs."""
    linear = weighted_call(module, node, aten.linear.default)
    if linear is None:
        raise TableIndexError(f"'{node.name}' is no Linear with constant weight and bias")
    weight, bias = linear.weight, linear.bias
    wide = weight.detach()
    shift = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if read is not None:
        dropped = read.dropped.to(weight.device)
        shift = wide[:, dropped].to(torch.float64) @ read.constants.to(weight.device)[dropped]
        wide = wide[:, read.kept.to(weight.device)]
    shifted = None if bias is None and not shift.any() else shift + (0 if bias is None else bias.detach())
    if made is not None:
        kept = made.kept.to(weight.device)
        wide = wide[kept]
        shifted = None if shifted is None else shifted[kept]
    old = node.args[1:]
    node.args = (linear.source,)  # the wide constants leave first, so that the narrow ones can take their names
    for constant in old:
        if isinstance(constant, Node) and not constant.users:
            module.graph.erase_node(constant)
    drop_unused_state(module)
    constants = [parameter(module, linear.name, wide.contiguous(), rule=RULE)]
    if shifted is not None:
        name = str(old[1].target) if len(old) > 1 and isinstance(old[1], Node) else f"{site_name(linear.name)}.bias"
        constants.append(parameter(module, name, shifted.to(weight.dtype), rule=RULE))
    return call(module.graph, aten.linear.default, linear.source, *constants, rule=RULE, like=node)


def _again(node: Node) -> Node:
    target, arguments = cast(Callable[..., Any], node.target), args_of(node)
    return call(node.graph, target, *arguments, rule=RULE, like=node, **node.kwargs)
