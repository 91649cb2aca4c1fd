"""A picture as SVG, laid out and drawn by Graphviz; the page's style sheet colours it by the classes of its parts.

The first line of a box is its name, and the last one of a box with the class ``verdict`` what becomes of the codes that
reach it. What is told where a box or an arrow is pointed at is its tooltip, which needs no script.
"""

from __future__ import annotations

import contextlib
import html
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from afm_fx.report.chains import listed
from afm_fx.report.extras import import_for_report
from afm_fx.report.picture import FORMS, Box, Picture
from passes.laws import Fate
from passes.sites import Site, SiteKind

_LONGEST_NAME, _MOST_NAMES = 38, 12
_VERDICTS: dict[Fate | None, str] = {**{fate: str(fate) for fate in Fate}, Fate.ABSORBED: "absorbs the decoder"}
_SHORT = {"_native_batch_norm_legit_no_training": "batch_norm", "native_layer_norm": "layer_norm"}
"""What users call the operators that torch has long names for."""


def picture_svg(picture: Picture) -> str:
    """The picture as an ``svg`` element.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    pygraphviz = import_for_report("pygraphviz")
    graph = pygraphviz.AGraph(directed=True, strict=False, nodesep="0.3", ranksep="0.36")
    graph.graph_attr.update(bgcolor="transparent", outputorder="edgesfirst")
    graph.node_attr.update(shape="box", style="rounded", fontname="Courier", fontsize="12")
    graph.node_attr.update(height="0", margin="0.13,0.07")
    graph.edge_attr.update(arrowsize="0.7")
    for box in picture.boxes:
        verdict = "" if box.role in ("restore", "output") else _VERDICTS.get(box.fate, "")
        graph.add_node(
            box.key,
            id=box.key,
            label=_escaped("\n".join(filter(None, [_name(box), *_notes(box), verdict]))),
            tooltip=_escaped(_tooltip(box), readings=2),
            **{"class": f"{box.role} {css_class(box.fate)}{' verdict' if verdict else ''}"},
        )
    for (source, target, form), between in picture.arrows.items():
        through = f", through {between} more operators" if between else ""
        graph.add_edge(
            source,
            target,
            key=form,
            weight=1 if between else 4,  # heavier arrows are drawn shorter and straighter
            tooltip=f"{FORMS[form]}{through}",
            **{"class": f"{form}{' indirect' if between else ''}"},
        )
    with _quiet_font_library():
        svg: str = graph.draw(format="svg_inline", prog="dot").decode()
    return svg[svg.index("<svg") :]


def css_class(fate: Fate | None) -> str:
    """The class that colours a fate; that of what is only moved for None."""
    return str(fate or "moved").replace(" ", "-")


def _escaped(text: str, readings: int = 1) -> str:
    """Text that Graphviz shows as it stands: it reads entities, and what follows a backslash (in tooltips twice)."""
    return html.escape(text).replace("\\", "\\" * 2**readings)


@contextlib.contextmanager
def _quiet_font_library() -> Iterator[None]:
    """Hides what Graphviz's font library writes to the process's standard error where a machine has no fonts.

    A line of a box is as long as a font of fixed width makes it, with or without fonts.
    """
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _name(box: Box) -> str:
    """The first line of a box."""
    if box.sites:
        return _range(box.sites[0].name, box.sites[-1].name)
    name = _shortened(short_operator(box.flow[0].operator), _LONGEST_NAME)
    return name if len(box.flow) == 1 else f"{name} \u00d7 {len(box.flow)}"


def short_operator(operator: str) -> str:
    """``sum`` of ``aten.sum.dim_IntList``; operators of other libraries keep their whole name."""
    if not operator.startswith("aten."):
        return operator
    name = operator.removeprefix("aten.").partition(".")[0]
    return _SHORT.get(name, name.strip("_"))


def _range(first: str, last: str) -> str:
    """One name, or the first and the last of several, with what both begin with written once."""
    if first == last:
        return _shortened(first, _LONGEST_NAME)
    parent = posixpath.commonpath([first.replace(".", "/"), last.replace(".", "/")])
    rest = last[len(parent) :].removeprefix(".")
    return f"{_shortened(first, _LONGEST_NAME)} \u2026 {_shortened(rest, _LONGEST_NAME // 2)}"


def _shortened(text: str, most: int) -> str:
    """The text with its middle left out where it is longer than ``most`` characters."""
    end = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - end]}\u2026{text[-end:]}"


def _notes(box: Box) -> Iterator[str]:
    """The lines between a box's name and its verdict."""
    if box.role == "restore" and box.uses > 1:
        yield f"once for {box.uses} uses"
    if box.sites:
        thing = "table" if box.role == SiteKind.EMBEDDING else "Linear"
        yield f"{thing if len(box.sites) == 1 else f'{len(box.sites)} {thing}s'}, {size_of(*box.sites)}"
        if box.sites[0].refusal is not None and box.fate is not Fate.REFUSED:
            yield "its own features: refused"


def size_of(*sites: Site) -> str:
    """Rows and width of tables, inputs and outputs of Linears."""
    rows, widths = _span([site.rows for site in sites]), _span([site.width for site in sites])
    return f"{rows} rows \u00d7 {widths}" if sites[0].kind is SiteKind.EMBEDDING else f"{rows} \u2192 {widths}"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _tooltip(box: Box) -> str:
    """What is told about a box where it is pointed at, a line for every fact that there is."""
    names = [site.name for site in box.sites]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    places = _once(node.source for node in box.flow)
    carried = _once(name for node in box.flow for name in node.carries)
    facts = {
        "sites" if len(names) > 1 else "site": ", ".join(names[:_MOST_NAMES]) + more,
        "refused": next((site.refusal for site in box.sites if site.refusal is not None), ""),
        "features of": listed(carried) if box.role == "restore" else "",
        "why": "; ".join(_once(node.reason for node in box.flow)),
        "operator": box.flow[0].operator if box.role in ("operator", "output") else "",
        "shape": ", ".join(_once(" \u00d7 ".join(node.shape) for node in box.flow)) or "several tensors",
        "at": f"{places[0]} (and {len(places) - 1} more)" if len(places) > 1 else "".join(places),
    }
    return "\n".join([_name(box), *(f"{name}: {text}" for name, text in facts.items() if text)])


def _once(texts: Iterable[str]) -> list[str]:
    """Texts without repeats and empty ones."""
    return list(dict.fromkeys(filter(None, texts)))
