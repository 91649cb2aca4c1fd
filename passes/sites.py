"""Finds the sites of a graph: the embedding tables and Linears whose output features may be factored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.graph_tools import aten, constant_of


class SiteKind(StrEnum):
    """What a site is."""

    EMBEDDING = "embedding"
    LINEAR = "linear"


@dataclass(frozen=True)
class Site:
    """A table or a Linear whose output features y in R^n may be factored.

    Attributes:
        name: the weight's qualified name without ``.weight``.
        parameter: the weight's qualified name.
        kind: embedding table or Linear.
        width: number n of features.
        rows: rows V of the table, or the number of inputs of the Linear.
        centred: whether a code may carry an offset (not where a padding row has to stay zero).
        nodes: names of the nodes that produce the features.
        refusal: why the site is left as it is, None where it may be factored.
    """

    name: str
    parameter: str
    kind: SiteKind
    width: int
    rows: int
    centred: bool
    nodes: tuple[str, ...]
    refusal: str | None = None


def find_sites(module: GraphModule) -> tuple[Site, ...]:
    """All sites of a graph, refused ones included, in the order in which their features appear."""
    order = {node.name: position for position, node in enumerate(module.graph.nodes)}
    sites = [site for weights in _weights(module) if (site := _site_of(module, weights, order)) is not None]
    return tuple(sorted(sites, key=lambda site: order[site.nodes[0]]))


def site_name(parameter: str) -> str:
    """The site's name: the weight's qualified name without ``.weight``."""
    return parameter.removesuffix(".weight")


def _weights(module: GraphModule) -> Iterator[list[Node]]:
    """The ``get_attr`` nodes of every two-axis tensor; nodes of one tensor (tied names) together."""
    groups: dict[int, list[Node]] = {}
    for node in module.graph.nodes:
        tensor = constant_of(module, node)
        if tensor is not None and tensor.dim() == 2 and tensor.is_floating_point():
            groups.setdefault(id(tensor), []).append(node)
    yield from groups.values()


def _site_of(module: GraphModule, weights: list[Node], order: Mapping[str, int]) -> Site | None:
    users = [(user, weight) for weight in weights for user in weight.users]
    lookups = [user for user, weight in users if is_lookup_of(user, weight)]
    linears = [user for user, weight in users if is_linear_of(user, weight)]
    producers = lookups or linears
    tensor = constant_of(module, weights[0])
    if not producers or tensor is None:
        return None
    kind = SiteKind.EMBEDDING if lookups else SiteKind.LINEAR
    producers.sort(key=lambda node: order[node.name])
    others = [user for user, _ in users if user not in producers]
    return Site(
        name=site_name(str(weights[0].target)),
        parameter=str(weights[0].target),
        kind=kind,
        width=int(tensor.shape[1] if lookups else tensor.shape[0]),
        rows=int(tensor.shape[0] if lookups else tensor.shape[1]),
        centred=not any(keeps_padding_row(lookup) for lookup in lookups),
        nodes=tuple(node.name for node in producers),
        refusal=_refusal(tensor, kind, others),
    )


def _refusal(tensor: Tensor, kind: SiteKind, others: list[Node]) -> str | None:
    thing = "table" if kind is SiteKind.EMBEDDING else "weight"
    for other in others:
        if "embedding_renorm" in str(other.target):
            return "the table has max_norm, which rescales its rows while the model runs"
        return f"the {thing} is also used by {other.target} ('{other.name}'), which needs it as it is"
    if not isinstance(tensor, nn.Parameter):
        return f"the {thing} is a buffer, not a parameter"
    if tensor.shape[1 if kind is SiteKind.EMBEDDING else 0] == 1:
        return "one feature wide, there is nothing to factor"
    return None


def is_lookup_of(node: Node, weight: Node) -> bool:
    """Whether a node looks rows of this weight up."""
    return node.target is aten.embedding.default and node.args[0] is weight and node.args[1] is not weight


def is_linear_of(node: Node, weight: Node) -> bool:
    """Whether a node is a Linear with this weight (and uses it for nothing else)."""
    return node.target is aten.linear.default and node.args[1] is weight and list(node.args).count(weight) == 1


def keeps_padding_row(lookup: Node) -> bool:
    """Whether a lookup has a padding row, whose features must stay zero."""
    return len(lookup.args) > 2 and isinstance(lookup.args[2], int) and lookup.args[2] >= 0
