"""The drawing: a node with name, notes and verdict for every box, an arrow for every arrow, whatever the names are."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree as ET

import pytest

import afm_fx
from afm_fx.errors import MissingPackageError
from afm_fx.report.explanation import Explanation
from afm_fx.report.picture import FORMS, Picture, picture_of
from afm_fx.report.picture_svg import picture_svg
from tests.graphs import Tower, tower_batch
from tests.report.html_pages import NASTY

pytest.importorskip("pygraphviz")


@pytest.fixture(scope="module")
def tower() -> Explanation:
    return afm_fx.explain(Tower(), tower_batch(4))


@pytest.fixture(scope="module")
def picture(tower: Explanation) -> Picture:
    return picture_of(tower)


def parts(svg: str, kind: str) -> dict[str, ET.Element]:
    """Boxes ("node") or arrows ("edge") by their titles."""
    root = ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="xlink"', 1))  # noqa: S314 - our own
    found = {}
    for group in root.iter("g"):
        if kind in group.get("class", "").split():
            found[str(group.findtext("title"))] = group
    return found


def lines(box: ET.Element) -> list[str]:
    return [text.text or "" for text in box.iter("text")]


def tooltip(part: ET.Element) -> str:
    return next(link.get("{xlink}title", "") for link in part.iter("a"))


def test_every_box_is_drawn_with_its_name_size_verdict_and_facts(picture: Picture) -> None:
    boxes = parts(picture_svg(picture), "node")
    assert list(boxes) == [box.key for box in picture.boxes]
    first = next(box for box in picture.boxes if [site.name for site in box.sites] == ["first"])
    assert lines(boxes[first.key]) == ["first", "Linear, 23 \u2192 12", "absorbs the decoder"]
    assert boxes[first.key].get("class") == "node linear absorbed verdict"
    told = tooltip(boxes[first.key]).splitlines()
    assert told[:2] == ["first", "site: first"]
    assert told[2].startswith("why: a Linear takes the decoder")
    assert told[3:] == ["shape: batch \u00d7 12", f"at: {first.flow[0].source}"]


def test_every_arrow_is_drawn_and_says_what_it_carries(picture: Picture) -> None:
    arrows = parts(picture_svg(picture), "edge")
    assert set(arrows) == {f"{start}->{end}" for start, end, _ in picture.arrows}
    for start, end, form in picture.arrows:
        drawn = arrows[f"{start}->{end}"]
        assert drawn.get("class", "").split()[:2] == ["edge", form]
        assert tooltip(drawn).startswith(FORMS[form])


@pytest.mark.parametrize("name", [NASTY, "<i>all</i>", "back\\nslash \\N \\G", "a &lt; b", '"', "naïve 名前"])
def test_any_name_is_shown_as_it_is(tower: Explanation, name: str) -> None:
    spelled = Explanation.from_json(tower.to_json().replace('"first"', json.dumps(name)))
    shown = [box for box in parts(picture_svg(picture_of(spelled)), "node").values() if f"site: {name}" in tooltip(box)]
    assert [lines(box)[0] for box in shown] == [name if len(name) <= 38 else f"{name[:19]}\u2026{name[-18:]}"]


def test_the_same_picture_gives_the_same_drawing(picture: Picture) -> None:
    assert picture_svg(picture) == picture_svg(picture)


def test_nothing_is_written_to_standard_error(picture: Picture, capfd: pytest.CaptureFixture[str]) -> None:
    picture_svg(picture)
    assert capfd.readouterr().err == ""


def test_nothing_to_draw_is_an_empty_drawing() -> None:
    assert parts(picture_svg(Picture((), {}, ())), "node") == {}


def test_without_pygraphviz_the_error_says_what_to_install(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afm-fx\[report\]'"):
        picture_svg(picture)
