"""What stands in a box of the picture, how large that makes it, and what is told where it is pointed at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from afm_fx.chains import listed
from afm_fx.picture import Box, Role, short_operator
from passes.sink_codes import Fate
from passes.sites import Site, SiteKind

_LONGEST_TITLE, _SHORTEST_PARENT = 38, 12
_TITLE_ADVANCE, _NOTE_ADVANCE = 7.4, 6.4
_TITLE_LINE, _NOTE_LINE, _PADDING_X, _PADDING_Y = 16.0, 15.0, 12.0, 6.0
_NAMED = 12


def box_title(box: Box) -> str:
    """The name in a box."""
    if box.role is Role.RESTORE:
        return _counted("restore", len(box.flow))
    if box.sites:
        return _range(box.sites[0].name, box.sites[-1].name)
    return _shortened(_counted(short_operator(box.flow[0].operator), len(box.flow)), _LONGEST_TITLE)


def _counted(name: str, count: int) -> str:
    return name if count == 1 else f"{name} \u00d7 {count}"


def _range(first: str, last: str) -> str:
    """One name, or the first and the last of several, with what both begin with written once."""
    if first == last:
        return _shortened(first, _LONGEST_TITLE)
    parts, others = first.split("."), last.split(".")
    alike = 0
    while alike < min(len(parts), len(others)) - 1 and parts[alike] == others[alike]:
        alike += 1
    parent = "".join(f"{part}." for part in parts[:alike])
    ends = [_shortened(".".join(each[alike:]), _LONGEST_TITLE // 2) for each in (parts, others)]
    tail = " \u2026 ".join(ends)
    return _shortened(parent, max(_LONGEST_TITLE - len(tail), _SHORTEST_PARENT)) + tail


def _shortened(text: str, most: int) -> str:
    """The text with its middle left out where it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}\u2026{text[-end:]}"


def box_notes(box: Box) -> Iterator[str]:
    """The lines below a box's title."""
    if box.role is Role.RESTORE:
        if box.uses > 1:
            yield f"once for {box.uses} uses"
        return
    if box.sites:
        yield _sizes(box.sites)
        if box.sites[0].refusal is not None and box.fate is not Fate.REFUSED:
            yield "its own features: refused"
    if box.fate is not None and box.role is not Role.OUTPUT:
        yield "absorbs the decoder" if box.fate is Fate.ABSORBED else str(box.fate)


def _sizes(sites: Sequence[Site]) -> str:
    """How many sites, and how large they are."""
    thing = "table" if sites[0].kind is SiteKind.EMBEDDING else "Linear"
    what = thing if len(sites) == 1 else f"{len(sites)} {thing}s"
    rows, widths = _span([site.rows for site in sites]), _span([site.width for site in sites])
    return f"{what}, {rows} rows \u00d7 {widths}" if thing == "table" else f"{what}, {rows} \u2192 {widths}"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def site_size(site: Site) -> str:
    """Rows and width of a table, inputs and outputs of a Linear."""
    if site.kind is SiteKind.EMBEDDING:
        return f"{site.rows:,} rows \u00d7 {site.width:,}"
    return f"{site.rows:,} \u2192 {site.width:,}"


def box_size(title: str, notes: Sequence[str]) -> tuple[float, float]:
    """Width and height in pixels that hold the text in any usual font."""
    text = max([len(title) * _TITLE_ADVANCE, *(len(note) * _NOTE_ADVANCE for note in notes)])
    return round(text + 2 * _PADDING_X, 1), _TITLE_LINE + len(notes) * _NOTE_LINE + 2 * _PADDING_Y


def box_facts(box: Box) -> Iterator[tuple[str, str]]:
    """What is told about a box where it is pointed at."""
    names = [site.name for site in box.sites]
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield "sites" if len(names) > 1 else "site", ", ".join(names[:_NAMED]) + more
    refusal = next((site.refusal for site in box.sites if site.refusal is not None), None)
    if refusal is not None:
        yield "refused", refusal
    if box.role is Role.RESTORE:
        carried = list(dict.fromkeys(name for node in box.flow for name in node.carries))
        yield "features of", listed(carried)
        yield "shape", _shapes(box)
        return
    reasons = dict.fromkeys(node.reason for node in box.flow if node.reason)
    if reasons:
        yield "why", "; ".join(reasons)
    if not names:
        yield "operator", box.flow[0].operator
    yield "shape", _shapes(box)
    places = list(dict.fromkeys(node.source for node in box.flow if node.source))
    if places:
        yield "at", places[0] if len(places) == 1 else f"{places[0]} (and {len(places) - 1} more)"


def _shapes(box: Box) -> str:
    """The shapes of the results, each once."""
    return ", ".join(dict.fromkeys(" \u00d7 ".join(node.shape) for node in box.flow if node.shape)) or "several tensors"
