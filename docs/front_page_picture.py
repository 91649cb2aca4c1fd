"""The picture of before and after: every weight to scale, and what a call takes, as SVG for a light or a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

ROW, COLUMN = 0.015, 0.46
"""Pixels that a row and a column of a table take; layers have the same area per parameter."""
SIDE = (ROW * COLUMN) ** 0.5
GAP = 1.6
WIDTH, PANEL = 880, 440

THEMES = {
    "light": {"text": "#1f2328", "muted": "#59636e", "line": "#d1d9e0", "table": "#3d7ab8", "layer": "#c2571a"},
    "dark": {"text": "#f0f6fc", "muted": "#9198a1", "line": "#3d444d", "table": "#6cb0f5", "layer": "#f0915a"},
}


@dataclass(frozen=True)
class Weight:
    """A matrix: a table ("table"), or one of a layer's ("layer"), in the place ``number``."""

    kind: str
    number: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Side:
    """One half of the picture."""

    title: str
    facts: str
    weights: tuple[Weight, ...]


@dataclass(frozen=True)
class Bars:
    """Times of all contenders at one batch size: label, microseconds, and the time as it is written."""

    title: str
    times: tuple[tuple[str, float, str], ...]


def picture(sides: Sequence[Side], bars: Sequence[Bars], theme: str) -> str:
    """The picture.

    Args:
        sides: before and after.
        bars: below them, a group for each batch size.
        theme: a key of ``THEMES``.
    """
    colour = THEMES[theme]
    parts = [_side(side, PANEL * place + 20, colour) for place, side in enumerate(sides)]
    top = 342
    height = top + 74 + 18 * len(bars[0].times)
    parts += [
        f'<line x1="20" y1="{top}" x2="{WIDTH - 20}" y2="{top}" stroke="{colour["line"]}"/>',
        _text(20, top + 24, "Median time of a call in ONNX Runtime, one thread", colour["text"], weight=600),
        _text(240, top - 21, "areas: parameters, to one scale", colour["muted"]),
        _bars(bars, top + 48, colour),
    ]
    about = "; ".join(f"{side.title}: {side.facts}" for side in sides)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12.5">\n'
        f"<title>{escape(about)}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _side(side: Side, left: float, colour: dict[str, str]) -> str:
    parts = [
        _text(left, 24, side.title, colour["text"], weight=600, size=15),
        _text(left, 43, side.facts, colour["muted"]),
    ]
    top = 60.0
    tables = [each for each in side.weights if each.kind == "table"]
    for each in tables:
        height = each.columns * COLUMN
        parts.append(_box(left, top, max(each.rows * ROW, 0.6), max(height, 0.6), colour["table"]))
        top += 17 * COLUMN + GAP  # the pitch of the widest, so that both sides line up
    widths = sorted({each.columns for each in tables})
    spread = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else f"{widths[0]}"
    parts.append(_text(left, top + 16, f"{len(tables)} tables, {spread} numbers an id", colour["muted"]))
    parts.append(_layers([each for each in side.weights if each.kind == "layer"], left + 175, 196, colour))
    return "\n".join(parts)


def _layers(layers: Sequence[Weight], left: float, middle: float, colour: dict[str, str]) -> str:
    parts, shapes, place = [], [], left
    for number, matrices in groupby(layers, key=lambda each: each.number):
        if number:
            parts.append(_arrow(place + 3, middle, colour))
            place += 22
        for each in matrices:
            height, width = each.rows * SIDE, each.columns * SIDE
            parts.append(_box(place, middle - height / 2, max(width, 0.6), max(height, 0.6), colour["layer"]))
            place += width + 2
            shapes.append(f"{each.rows}x{each.columns}")
    parts.append(_arrow(place + 3, middle, colour))
    parts.append(_text(place + 25, middle + 4, "click", colour["muted"]))
    lines = [shapes] if len(shapes) <= 3 else [shapes[start : start + 2] for start in range(0, len(shapes), 2)]
    parts.append(_text(left, middle + 44, "MLP, inputs x outputs:", colour["muted"]))
    parts += [
        _text(left, middle + 61 + 16 * number, ", ".join(line), colour["muted"]) for number, line in enumerate(lines)
    ]
    return "\n".join(parts)


def _bars(groups: Sequence[Bars], top: float, colour: dict[str, str]) -> str:
    parts = [
        _text(20, top + 18 * number + 14, label, colour["text"]) for number, (label, *_) in enumerate(groups[0].times)
    ]
    span, left = 238, 175
    for place, group in enumerate(groups):
        start = left + span * place
        longest = max(time for _, time, _ in group.times)
        parts.append(_text(start, top - 4, group.title, colour["muted"]))
        for number, (_, time, written) in enumerate(group.times):
            length, y = 135 * time / longest, top + 18 * number + 4
            fill = colour["table"] if number > 1 else colour["muted"]
            parts += [
                _box(start, y, length, 12, fill),
                _text(start + length + 6, y + 10.5, written, colour["text"]),
            ]
    return "\n".join(parts)


def _arrow(x: float, y: float, colour: dict[str, str]) -> str:
    points = f"M{x:.1f} {y:.1f}h13m-4 -3.5l4 3.5l-4 3.5"
    return f'<path d="{points}" fill="none" stroke="{colour["muted"]}" stroke-width="1.2"/>'


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height:.2f}" fill="{fill}"/>'


def _text(x: float, y: float, text: str, fill: str, *, weight: int = 400, size: float | None = None) -> str:
    bigger = "" if size is None else f' font-size="{size}"'
    bold = "" if weight == 400 else f' font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}"{bold}{bigger}>{escape(text)}</text>'
