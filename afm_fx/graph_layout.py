"""Places boxes and arrows in layers, by Graphviz.

Boxes come with their sizes, so no font of this machine takes part: the same graph is laid out alike everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afm_fx.errors import MissingPackageError

_POINTS = 72.0
"""Points in an inch, Graphviz's unit of sizes; its positions are in points."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Where everything lies; the origin is at the top left, y goes down, units are pixels.

    Attributes:
        width: of the picture.
        height: of the picture.
        centres: of the boxes, by key.
        curves: for every arrow in the order given, a cubic spline from box to box: its start, then three points
            (two handles and an end) for each piece.
    """

    width: float
    height: float
    centres: Mapping[str, Point]
    curves: tuple[tuple[Point, ...], ...]


def lay_out(sizes: Mapping[str, Point], arrows: Sequence[tuple[str, str, int]]) -> Layout:
    """Lays a directed graph out from top to bottom.

    Args:
        sizes: width and height of every box, in pixels.
        arrows: key of the start, key of the end, and a weight: heavier arrows are drawn shorter and straighter.

    Raises:
        MissingPackageError: pygraphviz is not installed.
    """
    try:
        import pygraphviz  # noqa: PLC0415 - an extra; the explanation prints without it
    except ImportError as error:
        raise MissingPackageError(
            "the picture needs pygraphviz, which brings Graphviz along: pip install 'afm-fx[report]'"
        ) from error
    graph = pygraphviz.AGraph(directed=True, strict=False, rankdir="TB", nodesep="0.3", ranksep="0.36")
    for key, (width, height) in sizes.items():
        graph.add_node(key, label="", shape="box", fixedsize="true", width=width / _POINTS, height=height / _POINTS)
    for number, (source, target, weight) in enumerate(arrows):
        graph.add_edge(source, target, key=str(number), id=str(number), weight=weight, arrowsize="0.7")
    drawn = json.loads(graph.draw(format="json0", prog="dot"))
    _, _, width, height = _numbers(drawn["bb"])
    centres = {entry["name"]: _flipped(_numbers(entry["pos"]), height) for entry in drawn.get("objects", ())}
    curves = {int(entry["id"]): _curve(entry, height) for entry in drawn.get("edges", ())}
    return Layout(width, height, centres, tuple(curves[number] for number in range(len(arrows))))


def _curve(entry: Mapping[str, Any], height: float) -> tuple[Point, ...]:
    """The points of one arrow; Graphviz writes its tip first, as ``e,x,y``, and ends the spline before it."""
    tip: list[Point] = []
    points: list[Point] = []
    for word in str(entry["pos"]).split():
        at_tip = word.startswith("e,")
        (tip if at_tip else points).append(_flipped(_numbers(word.removeprefix("e,")), height))
    for each in tip:
        points += [points[-1], each, each]
    return tuple(points)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _flipped(point: Sequence[float], height: float) -> Point:
    return round(point[0], 1), round(height - point[1], 1)
