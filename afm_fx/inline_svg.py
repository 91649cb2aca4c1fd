"""Matplotlib's pictures as SVG that stands inside a page: the page's colours and fonts, and nothing of the moment.

Colours are those of the page's style sheet, so that one picture serves light and dark. Matplotlib knows no variables:
each is drawn in a colour that stands for it, and replaced in the text.
"""

from __future__ import annotations

import io
import re
from types import MappingProxyType
from typing import Any

from afm_fx.errors import MissingPackageError

COLOURS = MappingProxyType(
    {
        "ink": "#010101",
        "quiet": "#020202",
        "rule": "#030303",
        "restored": "#040404",
        "on-codes": "#050505",
        "card": "#060606",
        "absorbed": "#070707",
    }
)
"""What stands for a variable of the style sheet until the text is written."""

FONT_SIZE = 9.0


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many CSS pixels.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise MissingPackageError("the page's plots need matplotlib: pip install 'afm-fx[report]'") from error
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def inline_svg(figure: Any, name: str, label: str) -> str:
    """The figure as an ``svg`` element; the same figure gives the same text.

    Args:
        figure: of :func:`new_figure`, drawn in :data:`COLOURS`.
        name: tells its parts from those of other figures on the page.
        label: what a screen reader says; escaped here.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    sink = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(<(?:g|svg)\b[^>]*?) id="[^"]*"', r"\1", text)  # names of groups, the same in every figure
    text = re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;\"]*", r"font: \1 system-ui, 'DejaVu Sans', sans-serif", text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    view = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :].strip()
    return f'<svg class="plot" role="img" aria-label="{_escaped(label)}" {view[0] if view else ""}>{body}'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
