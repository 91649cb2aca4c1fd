"""An explanation as one HTML page that loads nothing: the picture of its flow beside every site and use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from afm_fx.box_text import box_facts, box_notes, box_size, box_title, site_size
from afm_fx.chains import SiteGroup, groups_of, listed
from afm_fx.errors import MissingPackageError
from afm_fx.graph_layout import Point, lay_out
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
class _DrawnBox:
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


def explanation_page(explanation: Explanation, title: str) -> str:
    """The page.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    template = _template()
    groups = groups_of(explanation.chains)
    picture = picture_of(explanation.flow, explanation.sites, groups)
    texts = {box.key: (box_title(box), tuple(box_notes(box))) for box in picture.boxes}
    sizes = {key: box_size(*text) for key, text in texts.items()}
    layout = lay_out(sizes, [(arrow.source, arrow.target, 1 if arrow.between else 4) for arrow in picture.arrows])
    page: str = template.render(
        title=title,
        explanation=explanation,
        layout=layout,
        boxes=[
            _DrawnBox(
                box,
                *texts[box.key],
                tuple(box_facts(box)),
                sizes[box.key],
                _corner(layout.centres[box.key], sizes[box.key]),
            )
            for box in picture.boxes
        ],
        arrows=[
            (arrow, _path(points), _arrow_text(arrow))
            for arrow, points in zip(picture.arrows, layout.curves, strict=True)
        ],
        groups=[_group(group, picture) for group in groups],
        fates=[(str(fate), explanation.uses(fate), meaning) for fate, meaning in MEANINGS.items()],
        folded=(*picture.folded, *_outside(explanation)),
        css_class=css_class,
    )
    return page


def _outside(explanation: Explanation) -> list[str]:
    """How many operators are not drawn because no features go through them."""
    inside = sum(node.operator != "output" for node in explanation.flow)
    outside = explanation.operators - inside
    return [f"{outside:,} of the graph's operators have nothing to do with features of a site."] if outside else []


def css_class(fate: Fate | str | None) -> str:
    """The class that colours a fate; that of what is only moved for None."""
    return str(fate or "moved").replace(" ", "-")


def _corner(centre: Point, size: Point) -> Point:
    """The top left corner of a box."""
    return round(centre[0] - size[0] / 2, 1), round(centre[1] - size[1] / 2, 1)


def _template() -> Any:
    try:
        import jinja2  # noqa: PLC0415 - an extra; the explanation prints without it
    except ImportError as error:
        raise MissingPackageError("the page needs jinja2: pip install 'afm-fx[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("afm_fx", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("explanation.html")


def _arrow_text(arrow: Arrow) -> str:
    words = {"codes": "codes", "features": "restored features", "rest": "what the model made of them"}[arrow.form]
    return f"{words}, through {arrow.between} more operators" if arrow.between else words


def _path(points: Sequence[Point]) -> str:
    """A cubic spline as an SVG path."""
    start, *rest = (f"{x:g},{y:g}" for x, y in points)
    return f"M{start}C{' '.join(rest)}"


def _group(group: SiteGroup, picture: Picture) -> dict[str, Any]:
    """One group of sites beside the picture, with the boxes that show it and its uses."""
    names = {site.name for site in group.sites}
    return {
        "title": listed([site.name for site in group.sites]),
        "kind": group.kind,
        "sites": [(site.name, site_size(site)) for site in group.sites],
        "boxes": " ".join(box.key for box in picture.boxes if any(site.name in names for site in box.sites)),
        "uses": [(use, _boxes_with(picture, nodes)) for use, nodes in group.uses.items()],
    }


def _boxes_with(picture: Picture, nodes: Collection[str]) -> str:
    """Keys of the boxes in which some nodes are."""
    return " ".join(
        box.key
        for box in picture.boxes
        if box.role is not Role.RESTORE and any(node.name in nodes for node in box.flow)
    )
