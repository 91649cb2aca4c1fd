"""What to draw of a flow: boxes and arrows, few enough to read, and a word on what was folded.

Operators that only move codes about are folded into the arrows, unless they join codes. Boxes that have equal contents,
equal predecessors and equal successors are drawn as one (26 tables that go the same way are one box): the coarsest
such partition, found by refining. Where that leaves too many boxes, everything on codes is folded as well; where even
that does, sites of one kind and operators of one kind with one verdict are drawn as one wherever they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from afm_fx.chains import SiteGroup
from afm_fx.flow import FlowNode
from passes.sink_codes import Fate
from passes.sites import Site, SiteKind

MOST_BOXES = 120
"""A picture of more boxes is folded further."""


_MERGED_ANYWHERE = (
    "The graph is large: sites of one kind, and operators of one kind with one verdict, are drawn as one box."
)

_SHORT = {"_native_batch_norm_legit_no_training": "batch_norm", "native_layer_norm": "layer_norm"}
"""What users call the operators that torch has long names for."""


class Role(StrEnum):
    """What a box stands for."""

    TABLE = "table"
    LINEAR = "linear"
    OPERATOR = "operator"
    RESTORE = "restore"
    OUTPUT = "output"


class Form(StrEnum):
    """What goes along an arrow."""

    CODES = "codes"
    FEATURES = "features"
    REST = "rest"


@dataclass(frozen=True)
class Box:
    """One box of the picture.

    Attributes:
        key: its name within the picture.
        role: what it stands for.
        fate: what becomes of the codes that reach it; refused for a site that is left alone.
        flow: the operators in it, in graph order; for a restore, those whose results it decodes.
        sites: the sites whose features it makes, each once.
        uses: for a restore, how many operators it decodes for.
    """

    key: str
    role: Role
    fate: Fate | None
    flow: tuple[FlowNode, ...]
    sites: tuple[Site, ...] = ()
    uses: int = 0


@dataclass(frozen=True)
class Arrow:
    """One arrow.

    Attributes:
        source: key of a box.
        target: key of a box.
        form: codes, restored features, or whatever else the model made of features.
        between: operators on the (shortest) way that are not drawn because features do not flow through them.
    """

    source: str
    target: str
    form: Form
    between: int = 0


@dataclass(frozen=True)
class Picture:
    """Boxes, arrows, and what is not drawn.

    Attributes:
        boxes: in graph order.
        arrows: in the order of their targets.
        folded: one sentence for each way of folding that was used.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    folded: tuple[str, ...]


@dataclass
class _Vertex:
    """A box before boxes are drawn as one: a flow node, or the restore of one's result."""

    flow: FlowNode
    restores: bool = False
    inputs: list[tuple[str, Form, int]] = field(default_factory=list)


def picture_of(
    flow: Sequence[FlowNode], sites: Sequence[Site], groups: Sequence[SiteGroup], *, most_boxes: int = MOST_BOXES
) -> Picture:
    """The picture of a flow.

    Args:
        flow: the operators that features flow through.
        sites: the sites among them.
        groups: the sites by their uses; only sites of one group may share a box.
        most_boxes: fold further where there would be more.
    """
    by_name = {site.name: site for site in sites}
    group_of = {site.name: position for position, group in enumerate(groups) for site in group.sites}
    whole = _with_restores(flow)
    contents = {name: _contents(vertex, by_name, group_of) for name, vertex in whole.items()}
    drawn: dict[str, list[tuple[str, Form, int]]] = {}
    for shown in (_shows_joins, _shows_ends):
        drawn = _contract(whole, shown)
        classes = _refine(drawn, contents, most_boxes)
        if classes is not None:
            return _picture(whole, drawn, classes, by_name, [_fold_note(whole, drawn)])
    classes = dict(zip(drawn, _numbered(_kind(whole[name], by_name) for name in drawn), strict=True))
    return _picture(whole, drawn, classes, by_name, [_fold_note(whole, drawn), _MERGED_ANYWHERE])


def _with_restores(flow: Sequence[FlowNode]) -> dict[str, _Vertex]:
    """The flow with a vertex of its own for every result that is decoded."""
    vertices: dict[str, _Vertex] = {}
    for node in flow:
        vertex = _Vertex(node)
        for edge in node.inputs:
            origin = edge.source
            if edge.codes and node.fate is Fate.RESTORED:
                origin = f"{edge.source}/restored"
                if origin not in vertices:
                    made = vertices[edge.source].flow
                    vertices[origin] = _Vertex(made, restores=True, inputs=[(edge.source, Form.CODES, 0)])
                vertex.inputs.append((origin, Form.FEATURES, 0))
            else:
                vertex.inputs.append((origin, Form.CODES if edge.codes else Form.REST, edge.between))
        vertices[node.name] = vertex
    return vertices


def _shows_ends(vertex: _Vertex, _inputs: Iterable[object]) -> bool:
    """Sites, restores, the ends of codes, and the output."""
    flow = vertex.flow
    ends = flow.fate in (Fate.ABSORBED, Fate.RESTORED)
    return vertex.restores or flow.site is not None or ends or flow.operator == "output"


def _shows_joins(vertex: _Vertex, inputs: Iterable[object]) -> bool:
    """Everything that is more than a move, and moves that join what comes from several boxes."""
    return _shows_ends(vertex, inputs) or vertex.flow.fate is not None or len(set(inputs)) > 1


def _contract(
    whole: Mapping[str, _Vertex], shown: Callable[[_Vertex, Iterable[object]], bool]
) -> dict[str, list[tuple[str, Form, int]]]:
    """The vertices that are drawn, each with its nearest drawn inputs; what is not drawn passes codes on."""
    drawn: dict[str, list[tuple[str, Form, int]]] = {}
    nearest: dict[str, list[str]] = {}
    for name, vertex in whole.items():
        inputs = list(
            dict.fromkeys((up, form, between) for source, form, between in vertex.inputs for up in nearest[source])
        )
        if shown(vertex, (up for up, _, _ in inputs)):
            drawn[name], nearest[name] = inputs, [name]
        else:
            nearest[name] = list(dict.fromkeys(up for up, _, _ in inputs))
    return drawn


def _contents(vertex: _Vertex, sites: Mapping[str, Site], group_of: Mapping[str, int]) -> tuple[object, ...]:
    """What two vertices must have in common to share a box, but for their neighbours."""
    flow = vertex.flow
    if vertex.restores:
        return (Role.RESTORE,)
    site = sites.get(flow.site or "")
    if site is None:
        return (_role(vertex, None), flow.operator, flow.fate, flow.reason, flow.source)
    width = (site.width,) if site.kind is SiteKind.EMBEDDING else (site.rows, site.width)
    return (_role(vertex, site), group_of.get(site.name), width, flow.fate, flow.reason)


def _kind(vertex: _Vertex, sites: Mapping[str, Site]) -> tuple[object, ...]:
    """What two vertices must have in common to share a box in a picture that would be too large otherwise."""
    site = sites.get(vertex.flow.site or "")
    if vertex.restores:
        return (Role.RESTORE,)
    made = (site.refusal is None,) if site is not None else (vertex.flow.operator,)
    return (_role(vertex, site), vertex.flow.fate, *made)


def _role(vertex: _Vertex, site: Site | None) -> Role:
    if vertex.restores:
        return Role.RESTORE
    if site is not None:
        return Role.TABLE if site.kind is SiteKind.EMBEDDING else Role.LINEAR
    return Role.OUTPUT if vertex.flow.operator == "output" else Role.OPERATOR


def _refine(
    drawn: Mapping[str, Sequence[tuple[str, Form, int]]], contents: Mapping[str, object], most: int
) -> dict[str, int] | None:
    """The coarsest classes of equal contents, predecessors and successors; None where there are more than ``most``."""
    outputs: dict[str, list[tuple[str, Form]]] = {name: [] for name in drawn}
    for name, inputs in drawn.items():
        for source, form, _ in inputs:
            outputs[source].append((name, form))
    classes = dict(zip(drawn, _numbered(contents[name] for name in drawn), strict=True))
    count = 0
    while count < len(set(classes.values())) <= most:
        count = len(set(classes.values()))
        keys = [
            (
                classes[name],
                frozenset((classes[source], form) for source, form, _ in inputs),
                frozenset((classes[target], form) for target, form in outputs[name]),
            )
            for name, inputs in drawn.items()
        ]
        classes = dict(zip(drawn, _numbered(keys), strict=True))
    return classes if len(set(classes.values())) <= most else None


def _numbered(keys: Iterable[object]) -> list[int]:
    """Keys as numbers, in the order in which they first appear."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _picture(
    whole: Mapping[str, _Vertex],
    drawn: Mapping[str, Sequence[tuple[str, Form, int]]],
    classes: Mapping[str, int],
    sites: Mapping[str, Site],
    notes: Sequence[str],
) -> Picture:
    members: dict[int, list[str]] = {}
    for name in drawn:
        members.setdefault(classes[name], []).append(name)
    keys = {name: f"b{place}" for place, names in enumerate(members.values()) for name in names}
    arrows: dict[tuple[str, str, Form], int] = {}
    uses: Counter[str] = Counter()
    for name, inputs in drawn.items():
        for source, form, between in inputs:
            place = (keys[source], keys[name], form)
            arrows[place] = min(between, arrows.get(place, between))
            uses[source] += 1
    boxes = tuple(
        _box(keys[names[0]], [whole[name] for name in names], sites, max(uses[name] for name in names))
        for names in members.values()
    )
    note = f"Boxes that go the same way are drawn as one: {len(drawn):,} as {len(boxes):,}."
    if len(drawn) == len(boxes) or _MERGED_ANYWHERE in notes:
        note = ""
    return Picture(
        boxes,
        tuple(Arrow(*ends, between) for ends, between in arrows.items()),
        tuple(sentence for sentence in (*notes, note) if sentence),
    )


def _box(key: str, vertices: Sequence[_Vertex], sites: Mapping[str, Site], uses: int) -> Box:
    first = vertices[0]
    flow = tuple(vertex.flow for vertex in vertices)
    if first.restores:
        return Box(key, Role.RESTORE, Fate.RESTORED, flow, uses=uses)
    own = dict.fromkeys(node.site for node in flow if node.site is not None)
    made = tuple(sites[name] for name in own)
    fate = Fate.REFUSED if made and made[0].refusal is not None and first.flow.fate is None else first.flow.fate
    return Box(key, _role(first, made[0] if made else None), fate, flow, made)


def _fold_note(whole: Mapping[str, _Vertex], drawn: Mapping[str, object]) -> str:
    """Which operators are folded into arrows, the commonest first."""
    hidden = Counter(vertex.flow.operator for name, vertex in whole.items() if name not in drawn)
    if not hidden:
        return ""
    listed = [f"{short_operator(name)} {count:,}" for name, count in hidden.most_common(6)]
    more = ", ..." if len(hidden) > len(listed) else ""
    return f"{hidden.total():,} operators that keep codes as they are lie in the arrows: {', '.join(listed)}{more}."


def short_operator(operator: str) -> str:
    """``sum`` of ``aten.sum.dim_IntList``; operators of other libraries keep their whole name."""
    if not operator.startswith("aten."):
        return operator
    name = operator.removeprefix("aten.").partition(".")[0]
    return _SHORT.get(name, name.strip("_"))
