"""What to draw of an explanation: boxes and arrows, few enough to read, and a word on what was folded.

Operators that only move codes about are folded into the arrows, unless they join codes. Boxes that have equal contents,
equal predecessors and equal successors are drawn as one (26 tables that go the same way are one box): the coarsest
such partition, found by refining. Refining stops where a picture would have too many boxes to read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from afm_fx.report.chains import groups_of
from afm_fx.report.flow import FlowEdge, FlowNode
from passes.laws import Fate
from passes.sites import Site, SiteKind

if TYPE_CHECKING:
    from afm_fx.report.explanation import Explanation

MOST_BOXES = 120
"""Boxes are told apart by their neighbours while there are no more than this; the covered models have up to 43."""

FORMS = {"codes": "codes", "features": "restored features", "rest": "what the model made of them"}
"""What goes along an arrow: its class, and in words."""


@dataclass(frozen=True)
class Box:
    """One box of the picture.

    Attributes:
        role: "embedding" or "linear" for sites, "restore", "output", or "operator" for any other.
        fate: what becomes of the codes that reach it; refused for a site that is left alone.
        flow: the operators in it, in graph order; for a restore, those whose results it decodes.
        sites: the sites whose features it makes, without repeats.
        uses: how many operators read one of its results.
    """

    key: str
    role: str
    fate: Fate | None
    flow: tuple[FlowNode, ...]
    sites: tuple[Site, ...]
    uses: int


@dataclass(frozen=True)
class Picture:
    """Boxes in graph order, arrows, and a sentence for whatever is not drawn.

    Attributes:
        arrows: by key of the box at the start, key of that at the end, and class (:data:`FORMS`): how many operators
            lie on the (shortest) way that are not drawn because features do not flow through them.
    """

    boxes: tuple[Box, ...]
    arrows: Mapping[tuple[str, str, str], int]
    folded: tuple[str, ...]

    def keys_of(self, names: Collection[str]) -> str:
        """The boxes that show some nodes of the graph, with spaces between."""
        return " ".join(box.key for box in self.boxes if any(node.name in names for node in box.flow))


def picture_of(explanation: Explanation, *, most_boxes: int = MOST_BOXES) -> Picture:
    """The picture of an explanation's flow."""
    sites = {site.name: site for site in explanation.sites}
    group_of = {site.name: place for place, group in enumerate(groups_of(explanation.chains)) for site in group.sites}
    whole = _with_restores(explanation.flow)
    drawn = _contract(whole)
    contents = {name: _contents(node, sites, group_of) for name, node in drawn.items()}
    classes, is_whole = _refine(drawn, contents, most_boxes)
    boxes, arrows = _boxes_and_arrows(drawn, classes, sites)
    notes = []
    if len(drawn) < len(whole):
        notes.append(f"{len(whole) - len(drawn):,} operators that only move codes lie in the arrows.")
    if not is_whole:
        notes.append("The graph is large: operators of one line with one verdict are one box, wherever they are.")
    elif len(boxes) < len(drawn):
        notes.append(f"Boxes that go the same way are drawn as one: {len(drawn):,} as {len(boxes):,}.")
    outside = explanation.operators - sum(node.operator != "output" for node in explanation.flow)
    if outside:
        notes.append(f"{outside:,} of the graph's operators have nothing to do with features of a site.")
    return Picture(boxes, arrows, tuple(notes))


def _with_restores(flow: Sequence[FlowNode]) -> dict[str, FlowNode]:
    """The flow with a node of its own for every result that is decoded."""
    nodes: dict[str, FlowNode] = {}
    for node in flow:
        inputs = []
        for edge in node.inputs:
            name = edge.source
            if not edge.codes or node.fate is not Fate.RESTORED:
                inputs.append(edge)
                continue
            restored = f"{name}/restored"
            if restored not in nodes:
                decoded = replace(nodes[name], name=restored, operator="restore", site=None, fate=Fate.RESTORED)
                nodes[restored] = replace(decoded, source="", reason="", inputs=(FlowEdge(name, codes=True),))
            inputs.append(FlowEdge(restored, codes=False))
        nodes[node.name] = replace(node, inputs=tuple(inputs))
    return nodes


def _contract(whole: Mapping[str, FlowNode]) -> dict[str, FlowNode]:
    """The nodes that are drawn, with their nearest drawn inputs; what is not drawn passes codes on.

    Drawn are sites, what has a verdict, the output, and moves that join what comes from several nodes.
    """
    drawn: dict[str, FlowNode] = {}
    nearest: dict[str, tuple[str, ...]] = {}
    for name, node in whole.items():
        edges = dict.fromkeys(replace(edge, source=source) for edge in node.inputs for source in nearest[edge.source])
        sources = tuple(dict.fromkeys(edge.source for edge in edges))
        if node.site is not None or node.fate is not None or node.operator == "output" or len(sources) > 1:
            drawn[name], nearest[name] = replace(node, inputs=tuple(edges)), (name,)
        else:
            nearest[name] = sources
    return drawn


def _role(node: FlowNode, sites: Mapping[str, Site]) -> str:
    if node.site is not None:
        return sites[node.site].kind
    return node.operator if node.operator in ("restore", "output") else "operator"


def _contents(node: FlowNode, sites: Mapping[str, Site], group_of: Mapping[str, int]) -> Hashable:
    """What two nodes must have in common to share a box, but for their neighbours; sites of one group may."""
    if node.operator == "restore":
        return node.operator
    if node.site is None:
        return node.operator, node.fate, node.reason, node.source
    site = sites[node.site]
    rows = site.rows if site.kind is SiteKind.LINEAR else None
    return group_of.get(site.name), site.width, rows, node.fate, node.reason


def _refine(drawn: Mapping[str, FlowNode], contents: Mapping[str, Hashable], most: int) -> tuple[dict[str, int], bool]:
    """Classes of equal contents, predecessors and successors: the coarsest, while there are no more than ``most``.

    Returns:
        The class of every node, and whether refining came to its end.
    """
    outputs: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for name, node in drawn.items():
        for edge in node.inputs:
            outputs[edge.source].append((name, edge.codes))
    classes = _numbered(contents)
    while True:
        keys = {
            name: (
                classes[name],
                frozenset((classes[edge.source], edge.codes) for edge in node.inputs),
                frozenset((classes[target], codes) for target, codes in outputs[name]),
            )
            for name, node in drawn.items()
        }
        finer = _numbered(keys)
        if finer == classes or len(set(finer.values())) > most:
            return classes, finer == classes
        classes = finer


def _numbered(keys: Mapping[str, Hashable]) -> dict[str, int]:
    """Keys as numbers, in the order in which they first appear."""
    numbers: dict[Hashable, int] = {}
    return {name: numbers.setdefault(key, len(numbers)) for name, key in keys.items()}


def _boxes_and_arrows(
    drawn: Mapping[str, FlowNode], classes: Mapping[str, int], sites: Mapping[str, Site]
) -> tuple[tuple[Box, ...], dict[tuple[str, str, str], int]]:
    """A box for every class, and an arrow wherever an edge leads from one to another."""
    members: dict[int, list[FlowNode]] = {}
    arrows: dict[tuple[str, str, str], int] = {}
    uses: Counter[str] = Counter()
    for name, node in drawn.items():
        members.setdefault(classes[name], []).append(node)
        for edge in node.inputs:
            form = "codes" if edge.codes else "features" if drawn[edge.source].operator == "restore" else "rest"
            ends = f"b{classes[edge.source]}", f"b{classes[name]}", form
            arrows[ends] = min(edge.between, arrows.get(ends, edge.between))
            uses[edge.source] += 1
    boxes = []
    for place, nodes in members.items():
        first, made = nodes[0], tuple(sites[name] for name in dict.fromkeys(node.site for node in nodes) if name)
        fate = Fate.REFUSED if made and made[0].refusal is not None and first.fate is None else first.fate
        most = max(uses[node.name] for node in nodes)
        boxes.append(Box(f"b{place}", _role(first, sites), fate, tuple(nodes), made, most))
    return tuple(boxes), arrows
