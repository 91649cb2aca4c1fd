"""The part of a graph that features flow through: sites, what carries their codes, where the codes end, the output."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from passes.graph import shape_of
from passes.laws import Fate, operator_name, source_line
from passes.sink_codes import Analysis

_SYMBOL = re.compile(r"\b[a-z]+\d+\b")
"""A symbolic size of torch, ``s29`` in ``5*s29``."""


@dataclass(frozen=True)
class FlowEdge:
    """A value on its way from one operator of the flow to the next.

    Attributes:
        codes: whether it is written as codes; otherwise these are the features themselves, or what was made of them.
        between: operators on the (shortest) way that are not part of the flow; 0 where the value arrives directly.
    """

    source: str
    codes: bool
    between: int = 0


@dataclass(frozen=True)
class FlowNode:
    """One operator of the flow.

    Attributes:
        operator: for example ``aten.cat``, or ``output``.
        shape: of its result; the batch's size is ``batch`` where it is the only one that varies, and torch's symbol
            otherwise; empty where the result is not one tensor.
        source: the user's source line, empty where the graph does not know it.
        site: the site whose features it makes, None for an operator that makes none.
        fate: what becomes of the codes that reach it; None where none do, or where they are only moved.
        reason: of the fate, with both costs where they were weighed.
        carries: the sites whose codes its result is written in.
    """

    name: str
    operator: str
    shape: tuple[str, ...]
    source: str
    site: str | None
    fate: Fate | None
    reason: str
    carries: tuple[str, ...]
    inputs: tuple[FlowEdge, ...]


def flow_of(module: GraphModule, analysis: Analysis) -> tuple[FlowNode, ...]:
    """The flow of a module's features according to its analysis, in graph order. Linear in the graph's edges."""
    makers = {name: site for site in analysis.sites for name in site.nodes}
    verdicts = {verdict.node: verdict for verdict in analysis.verdicts}
    symbols = {symbol for node in module.graph.nodes for size in _sizes(node) for symbol in _SYMBOL.findall(size)}
    batch = symbols.pop() if len(symbols) == 1 else None
    origins: dict[Node, Mapping[str, int]] = {}
    flow: list[FlowNode] = []
    for node in module.graph.nodes:
        edges = tuple(_edges(node, origins, analysis.carried))
        site = makers.get(node.name)
        belongs = site is not None or node.name in verdicts or analysis.carried.get(node.name) or node.op == "output"
        if belongs:
            verdict = verdicts.get(node.name)
            flow.append(
                FlowNode(
                    name=node.name,
                    operator=operator_name(node),
                    shape=tuple(size.replace(batch, "batch") if batch else size for size in _sizes(node)),
                    source=source_line(node),
                    site=site.name if site else None,
                    fate=verdict.fate if verdict else None,
                    reason=verdict.reason if verdict else "",
                    carries=analysis.carried.get(node.name, ()),
                    inputs=edges,
                )
            )
            origins[node] = {node.name: 0}
        elif edges:
            origins[node] = {edge.source: edge.between + 1 for edge in edges}
    return tuple(flow)


def _edges(node: Node, origins: Mapping[Node, Mapping[str, int]], carried: Mapping[str, Any]) -> Iterator[FlowEdge]:
    """The nearest nodes of the flow that an operator's operands come from, each once, by the shortest way."""
    nearest: dict[str, int] = {}
    for operand in node.all_input_nodes:
        for name, between in origins.get(operand, {}).items():
            nearest[name] = min(between, nearest.get(name, between))
    for name, between in nearest.items():
        yield FlowEdge(name, codes=bool(carried.get(name)) and between == 0, between=between)


def _sizes(node: Node) -> tuple[str, ...]:
    """The sizes of a node's result, symbolic ones as torch writes them."""
    return tuple(str(size) for size in shape_of(node) or ())
