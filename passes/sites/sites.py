"""Finds the sites of a graph: the embedding tables and Linears whose output features may be factored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.graph import aten, constant_of, readers_inside, runs_subgraphs
from passes.sites.lookups import Lookup, lookup_of

ONE_WIDE = "one feature wide, there is nothing to factor"
"""Why a site of one feature is refused; a table of one may still be part of a joint one."""


class SiteKind(StrEnum):
    """What a site is."""

    EMBEDDING = "embedding"
    LINEAR = "linear"


@dataclass(frozen=True)
class Site:
    """A table or a Linear whose output features y in R^n may be factored.

    Attributes:
        name: the weight's qualified name, which is ``parameter``, without ``.weight``.
        width: number n of features.
        rows: rows V of the table, or the number of inputs of the Linear.
        centred: whether a code may carry an offset (not where a padding row or an empty bag has to stay zero, nor
            where rows are summed).
        nodes: names of the nodes that produce the features.
        refusal: why the site is left as it is, None where it may be factored.
        lowest_rank: 0 where one constant row may stand for all (plain lookups of single rows), or else 1.
    """

    name: str
    parameter: str
    kind: SiteKind
    width: int
    rows: int
    centred: bool
    nodes: tuple[str, ...]
    refusal: str | None = None
    lowest_rank: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """The weight's shape, [V, n] of a table or [n, inputs] of a Linear."""
        return (self.rows, self.width) if self.kind is SiteKind.EMBEDDING else (self.width, self.rows)


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
    lookups = [lookup for user, weight in users for lookup in _lookups(user, weight)]
    linears = [user for user, weight in users if is_linear_of(user, weight)]
    inside = {user: kind for user, weight in users if (kind := _kind_inside(module, user, weight)) is not None}
    tensor = constant_of(module, weights[0])
    producers = [lookup.features for lookup in lookups] or linears or list(inside)
    if not producers or tensor is None:
        return None
    is_table = bool(lookups) or (not linears and SiteKind.EMBEDDING in inside.values())
    kind = SiteKind.EMBEDDING if is_table else SiteKind.LINEAR
    producers.sort(key=lambda node: order[node.name])
    readers = [lookup.node for lookup in lookups] or linears
    others = [user for user, _ in users if user not in readers]
    refusals = [lookup.refusal for lookup in lookups if lookup.refusal is not None]
    return Site(
        name=site_name(str(weights[0].target)),
        parameter=str(weights[0].target),
        kind=kind,
        width=int(tensor.shape[1] if is_table else tensor.shape[0]),
        rows=int(tensor.shape[0] if is_table else tensor.shape[1]),
        centred=not any(lookup.keeps_zero for lookup in lookups),
        nodes=tuple(node.name for node in producers),
        refusal=_refusal(tensor, kind, others) or next(iter(refusals), None),
        lowest_rank=0 if lookups and all(lookup.pooling is None for lookup in lookups) else 1,
    )


def _lookups(user: Node, weight: Node) -> Iterator[Lookup]:
    """The lookups that a user of a table does, those in its renormalized rows included."""
    if _renormalizes(user):
        yield from (lookup for reader in user.users if (lookup := lookup_of(reader, user)) is not None)
    elif (lookup := lookup_of(user, weight)) is not None:
        yield lookup


def _renormalizes(node: Node) -> bool:
    return node.target is aten.embedding_renorm.default


def _kind_inside(module: GraphModule, user: Node, weight: Node) -> SiteKind | None:
    """What the graphs that a node runs do with a weight: a lookup, a Linear, or neither."""
    if not runs_subgraphs(user):
        return None
    readers = list(readers_inside(module, user, weight))
    if any(lookup_of(reader, known) is not None for reader, known in readers):
        return SiteKind.EMBEDDING
    return SiteKind.LINEAR if any(is_linear_of(reader, known) for reader, known in readers) else None


def _refusal(tensor: Tensor, kind: SiteKind, others: list[Node]) -> str | None:
    thing = "table" if kind is SiteKind.EMBEDDING else "weight"
    for other in others:
        if _renormalizes(other):
            return "the table has max_norm, which rescales its rows while the model runs"
        if runs_subgraphs(other):
            return (
                f"the {thing} is used inside {other.target} ('{other.name}'), and branches and loops stay as they are"
            )
        return f"the {thing} is also used by {other.target} ('{other.name}'), which needs it as it is"
    if not isinstance(tensor, nn.Parameter):
        return f"the {thing} is a buffer, not a parameter"
    if tensor.shape[1 if kind is SiteKind.EMBEDDING else 0] == 1:
        return ONE_WIDE
    return None


def is_linear_of(node: Node, weight: Node) -> bool:
    """Whether a node is a Linear with this weight (and uses it for nothing else)."""
    return node.target is aten.linear.default and node.args[1] is weight and list(node.args).count(weight) == 1
