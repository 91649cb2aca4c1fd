"""Layered layout: everything has a place of its own, arrows go from box to box, the same graph lies alike."""

from __future__ import annotations

import itertools
import sys

import pytest

from afm_fx.errors import MissingPackageError
from afm_fx.graph_layout import lay_out

SIZES = {"a": (120.0, 40.0), "b": (60.0, 30.0), "c": (90.0, 30.0), "d": (60.0, 20.0)}
ARROWS = [("a", "b", 4), ("a", "c", 4), ("b", "d", 1), ("c", "d", 4), ("a", "b", 1)]


def test_boxes_lie_in_layers_and_do_not_overlap() -> None:
    pytest.importorskip("pygraphviz")
    layout = lay_out(SIZES, ARROWS)
    heights = {key: centre[1] for key, centre in layout.centres.items()}
    assert heights["a"] < heights["b"] == heights["c"] < heights["d"]
    for one, other in itertools.combinations(SIZES, 2):
        (x, y), (u, v) = layout.centres[one], layout.centres[other]
        apart = (
            abs(x - u) >= (SIZES[one][0] + SIZES[other][0]) / 2,
            abs(y - v) >= (SIZES[one][1] + SIZES[other][1]) / 2,
        )
        assert any(apart), f"{one} overlaps {other}"
    for key, (x, y) in layout.centres.items():
        width, height = SIZES[key]
        assert x - width / 2 >= 0
        assert x + width / 2 <= layout.width
        assert y - height / 2 >= 0
        assert y + height / 2 <= layout.height


def test_every_arrow_goes_from_its_box_to_its_box() -> None:
    pytest.importorskip("pygraphviz")
    layout = lay_out(SIZES, ARROWS)
    assert len(layout.curves) == len(ARROWS)
    for (source, target, _), points in zip(ARROWS, layout.curves, strict=True):
        assert len(points) % 3 == 1
        for key, (x, y) in ((source, points[0]), (target, points[-1])):
            assert abs(x - layout.centres[key][0]) <= SIZES[key][0] / 2 + 1
            assert abs(y - layout.centres[key][1]) <= SIZES[key][1] / 2 + 1


def test_the_same_graph_lies_alike() -> None:
    pytest.importorskip("pygraphviz")
    assert lay_out(SIZES, ARROWS) == lay_out(SIZES, ARROWS)


def test_nothing_to_lay_out_is_an_empty_layout() -> None:
    pytest.importorskip("pygraphviz")
    assert lay_out({}, []).centres == {}


def test_without_pygraphviz_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'afm-fx\[report\]'"):
        lay_out(SIZES, ARROWS)
