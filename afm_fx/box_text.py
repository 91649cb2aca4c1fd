"""What stands in a box of the picture, how large that makes it, and what is told where it is pointed at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from afm_fx.chains import listed
from afm_fx.picture import Box, Role, short_operator
from passes.sink_codes import Fate
from passes.sites import Site, SiteKind

_LONGEST_TITLE = 34
_TITLE_ADVANCE, _NOTE_ADVANCE = 7.4, 6.4
_TITLE_LINE, _NOTE_LINE, _PADDING_X, _PADDING_Y = 16.0, 15.0, 12.0, 6.0
_NAMED = 12


def box_title(box: Box) -> str:
    """The name in a box."""
    if box.role is Role.RESTORE:
        return "restore" if len(box.flow) == 1 else f"restore \u00d7 {len(box.flow)}"
    if box.sites:
        names = [site.name for site in box.sites]
        return _shortened(names[0]) if len(names) == 1 else _shortened(_range(names[0], names[-1]))
    name = short_operator(box.flow[0].operator)
    return _shortened(name if len(box.flow) == 1 else f"{name} \u00d7 {len(box.flow)}")


def _range(first: str, last: str) -> str:
    """Two names with what they begin with in common written once."""
    parent = first.rpartition(".")[0]
    tail = last.removeprefix(f"{parent}.") if parent else last
    return f"{first} \u2026 {tail}"


def _shortened(text: str) -> str:
    """The text with its middle left out where it is long."""
    if len(text) <= _LONGEST_TITLE:
        return text
    half = (_LONGEST_TITLE - 1) // 2
    return f"{text[:half]}\u2026{text[-half:]}"


def box_notes(box: Box) -> Iterator[str]:
    """The lines below a box's title."""
    if box.role is Role.RESTORE:
        if box.uses > 1:
            yield f"once for {box.uses} uses"
        return
    if box.sites:
        yield _sizes(box.sites)
    if box.fate is not None and box.role is not Role.OUTPUT:
        yield "absorbs the decoder" if box.fate is Fate.ABSORBED else str(box.fate)


def _sizes(sites: Sequence[Site]) -> str:
    """How many sites, and how large they are."""
    first, *others = sites
    if first.kind is SiteKind.LINEAR:
        return f"{len(sites)} Linears, {site_size(first)}" if others else f"Linear, {site_size(first)}"
    if not others:
        return f"table, {site_size(first)}"
    rows = sorted(site.rows for site in sites)
    span = f"{rows[0]:,}" if rows[0] == rows[-1] else f"{rows[0]:,} to {rows[-1]:,}"
    return f"{len(sites)} tables, {span} rows \u00d7 {first.width}"


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
    if box.flow[0].reason:
        yield "why", box.flow[0].reason
    if not names:
        yield "operator", box.flow[0].operator
    yield "shape", _shapes(box)
    if box.flow[0].source:
        yield "at", box.flow[0].source


def _shapes(box: Box) -> str:
    """The shapes of the results, each once."""
    return ", ".join(dict.fromkeys(" \u00d7 ".join(node.shape) for node in box.flow if node.shape)) or "several tensors"
