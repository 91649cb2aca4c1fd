"""Chains: where low-rank features come from, where they go, and what becomes of them there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch.fx import GraphModule, Node

from passes.graph import aten
from passes.laws import Fate, Law, Verdict
from passes.sink_codes import Analysis
from passes.sites import Site, SiteKind

LINEAR_CHAIN = "linear -> activation -> linear"
_UP_TO_LINEAR = frozenset(
    {
        aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default, aten.silu.default,
        aten.leaky_relu.default, aten.prelu.default, aten.elu.default, aten.dropout.default, aten.reshape.default,
        aten._native_batch_norm_legit_no_training.default, aten.mul.Tensor, aten.layer_norm.default,
        aten.native_layer_norm.default, aten.clone.default, aten.linear.default,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """One use of one site.

    Attributes:
        kind: "embedding -> linear", "linear -> activation -> linear", or what the features run into.
        path: node names from the site to the consumer (through the activation to the next Linear).
    """

    kind: str
    site: Site
    path: tuple[str, ...]
    verdict: Verdict


def chains_of(module: GraphModule, analysis: Analysis) -> list[Chain]:
    """The chains of an analysis of this module, those of one site together, sites in graph order."""
    sites = {site.name: site for site in analysis.sites}
    nodes = {node.name: node for node in module.graph.nodes}
    chains = [_chain(nodes[verdict.node], sites[verdict.site], verdict) for verdict in analysis.verdicts]
    chains += [_refused(site) for site in analysis.sites if site.refusal is not None]
    order = {site.name: position for position, site in enumerate(analysis.sites)}
    return sorted(chains, key=lambda chain: order[chain.site.name])


def _chain(consumer: Node, site: Site, verdict: Verdict) -> Chain:
    path = verdict.path
    if site.kind is SiteKind.LINEAR and verdict.law is Law.NONLINEAR:
        beyond = _next_linear(consumer)
        if beyond:
            return Chain(LINEAR_CHAIN, site, (*path, *beyond), verdict)
    end = "linear" if verdict.operator == "aten.linear" else str(verdict.law)
    return Chain(f"{site.kind} -> {end}", site, path, verdict)


def _refused(site: Site) -> Chain:
    verdict = Verdict(site.name, Fate.REFUSED, "", site.nodes[0], Law.UNKNOWN, site.refusal or "", "", site.nodes[:1])
    return Chain(f"{site.kind}", site, site.nodes[:1], verdict)


def _next_linear(node: Node) -> tuple[str, ...]:
    """The nodes from after an activation to the next Linear, empty where another operator comes first."""
    path: list[str] = []
    while (following := next((user for user in node.users if user.target in _UP_TO_LINEAR), None)) is not None:
        path.append(following.name)
        if following.target is aten.linear.default:
            return tuple(path)
        node = following
    return ()


Use: TypeAlias = tuple[Fate, str, str, str]
"""What a reader is told about a use: the verdict, the operator that takes the features (and what follows, in a chain of
Linears), ``file:line`` (empty where the graph does not know it), and the reason."""


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one kind, in graph order, with the same uses, and the nodes of the graph that every use stands for."""

    kind: SiteKind
    sites: tuple[Site, ...]
    uses: Mapping[Use, tuple[str, ...]]


def groups_of(chains: Sequence[Chain]) -> list[SiteGroup]:
    """The sites of some chains, those with the same uses together, in the order in which they first appear."""
    sites = {chain.site.name: chain.site for chain in chains}
    nodes: dict[str, dict[Use, dict[str, None]]] = {}
    for chain in chains:
        nodes.setdefault(chain.site.name, {}).setdefault(_use(chain), {})[chain.verdict.node] = None
    alike: dict[tuple[SiteKind, tuple[Use, ...]], list[str]] = {}
    for name, uses in nodes.items():
        alike.setdefault((sites[name].kind, tuple(uses)), []).append(name)
    return [
        SiteGroup(
            kind,
            tuple(sites[name] for name in names),
            {use: tuple(dict.fromkeys(node for name in names for node in nodes[name][use])) for use in uses},
        )
        for (kind, uses), names in alike.items()
    ]


def _use(chain: Chain) -> Use:
    verdict = chain.verdict
    operator = f"{verdict.operator} -> linear" if chain.kind == LINEAR_CHAIN else verdict.operator
    place = ":".join(verdict.source.split(":")[:2])  # of "file:line: code"
    return verdict.fate, operator, place, verdict.reason


def listed(names: Sequence[str]) -> str:
    """Names in short: the first and last of many, and how many."""
    return ", ".join(names) if len(names) < 3 else f"{names[0]} .. {names[-1]} ({len(names)})"
