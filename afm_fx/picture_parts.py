"""What the pages' picture of an explanation is made of: boxes and arrows in their places, and the list beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from afm_fx.box_text import box_facts, box_notes, box_size, box_title, site_size
from afm_fx.chains import SiteGroup, groups_of, listed
from afm_fx.graph_layout import Layout, Point, lay_out
from afm_fx.picture import Arrow, Box, Picture, Role, picture_of
from passes.sink_codes import Fate

if TYPE_CHECKING:
    from afm_fx.explanation import Explanation

MEANINGS = {
    Fate.ABSORBED: "folded into the weights that read it; the features are never built",
    Fate.ON_CODES: "done on the short codes, exactly",
    Fate.RESTORED: "decoded just before, once for all that need it",
    Fate.REFUSED: "left as it is",
}
"""What each fate means, for the legend."""


@dataclass(frozen=True)
class DrawnBox:
    """A box with its text and its place, as the template takes it."""

    box: Box
    title: str
    notes: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    size: Point
    corner: Point

    @property
    def label(self) -> str:
        """What a screen reader says."""
        return ". ".join([self.title, *self.notes, *(f"{name}: {text}" for name, text in self.facts)])


@dataclass(frozen=True)
class DrawnArrow:
    """An arrow with its path in SVG and what is told where it is pointed at."""

    arrow: Arrow
    path: str
    text: str


@dataclass(frozen=True)
class ListedGroup:
    """Sites with the same uses, and the keys of the boxes that show them and each of their uses.

    Attributes:
        title: their names in short.
        kind: embedding or linear.
        sites: (name, size) of each.
        boxes: keys, with spaces between.
        uses: each use with the keys of its boxes.
    """

    title: str
    kind: str
    sites: tuple[tuple[str, str], ...]
    boxes: str
    uses: tuple[tuple[Any, str], ...]


@dataclass(frozen=True)
class PictureParts:
    """All that ``picture.html`` and ``fates.html`` draw.

    Attributes:
        layout: size of the picture.
        boxes: in graph order.
        arrows: in the order of their targets.
        groups: the list beside the picture.
        fates: (fate, how many uses, meaning).
        folded: sentences on what is not drawn.
    """

    layout: Layout
    boxes: tuple[DrawnBox, ...]
    arrows: tuple[DrawnArrow, ...]
    groups: tuple[ListedGroup, ...]
    fates: tuple[tuple[str, int, str], ...]
    folded: tuple[str, ...]


def picture_parts(explanation: Explanation) -> PictureParts:
    """The parts, laid out by Graphviz.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    groups = groups_of(explanation.chains)
    picture = picture_of(explanation.flow, explanation.sites, groups)
    texts = {box.key: (box_title(box), tuple(box_notes(box))) for box in picture.boxes}
    sizes = {key: box_size(*text) for key, text in texts.items()}
    layout = lay_out(sizes, [(arrow.source, arrow.target, 1 if arrow.between else 4) for arrow in picture.arrows])
    return PictureParts(
        layout=layout,
        boxes=tuple(
            DrawnBox(
                box,
                *texts[box.key],
                tuple(box_facts(box)),
                sizes[box.key],
                _corner(layout.centres[box.key], sizes[box.key]),
            )
            for box in picture.boxes
        ),
        arrows=tuple(
            DrawnArrow(arrow, _path(points), _arrow_text(arrow))
            for arrow, points in zip(picture.arrows, layout.curves, strict=True)
        ),
        groups=tuple(_group(group, picture) for group in groups),
        fates=tuple((str(fate), explanation.uses(fate), meaning) for fate, meaning in MEANINGS.items()),
        folded=(*picture.folded, *_outside(explanation)),
    )


def _outside(explanation: Explanation) -> list[str]:
    """How many operators are not drawn because no features go through them."""
    inside = sum(node.operator != "output" for node in explanation.flow)
    outside = explanation.operators - inside
    return [f"{outside:,} of the graph's operators have nothing to do with features of a site."] if outside else []


def _corner(centre: Point, size: Point) -> Point:
    """The top left corner of a box."""
    return round(centre[0] - size[0] / 2, 1), round(centre[1] - size[1] / 2, 1)


def _arrow_text(arrow: Arrow) -> str:
    words = {"codes": "codes", "features": "restored features", "rest": "what the model made of them"}[arrow.form]
    return f"{words}, through {arrow.between} more operators" if arrow.between else words


def _path(points: Sequence[Point]) -> str:
    """A cubic spline as an SVG path."""
    start, *rest = (f"{x:g},{y:g}" for x, y in points)
    return f"M{start}C{' '.join(rest)}"


def _group(group: SiteGroup, picture: Picture) -> ListedGroup:
    names = {site.name for site in group.sites}
    return ListedGroup(
        title=listed([site.name for site in group.sites]),
        kind=str(group.kind),
        sites=tuple((site.name, site_size(site)) for site in group.sites),
        boxes=" ".join(box.key for box in picture.boxes if any(site.name in names for site in box.sites)),
        uses=tuple((use, _boxes_with(picture, nodes)) for use, nodes in group.uses.items()),
    )


def _boxes_with(picture: Picture, nodes: Collection[str]) -> str:
    """Keys of the boxes in which some nodes are."""
    return " ".join(
        box.key
        for box in picture.boxes
        if box.role is not Role.RESTORE and any(node.name in nodes for node in box.flow)
    )
