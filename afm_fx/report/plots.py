"""The plots of a compression's report: the spectrum of a site, and latency over batch sizes.

Colours are those of the page's style sheet, so that one plot serves light and dark. Matplotlib knows no variables: each
is drawn in a colour that stands for it, and replaced in the text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from afm_fx.calibration import Statistics
from afm_fx.measure import Measurement
from afm_fx.planning import Plan, SitePlan, restricted
from afm_fx.report.extras import import_for_report

WIDEST = 2_048
"""Features of the widest site whose eigenvalues are taken: their price grows with the third power."""

LEAST = 1e-6
"""Shares of energy below this are drawn at the bottom of the plot."""

_INK, _QUIET, _RULE, _RESTORED, _ON_CODES, _ABSORBED = _COLOURS = [
    f"#0{digit}0{digit}0{digit}" for digit in range(1, 7)
]
_VARIABLES = ("--ink", "--quiet", "--rule", "--restored", "--on-codes", "--absorbed")
_FONT_SIZE = 9.0


def spectra_of(statistics: Statistics, plan: Plan) -> Iterator[tuple[SitePlan, list[float]]]:
    """The spectra of a plan's sites, in its order; sites wider than :data:`WIDEST` have none.

    Energy is counted about the mean, or about zero for a site whose code has no offset.

    Yields:
        A site and, [n + 1], the share of its features' energy that the best r directions leave over, r = 0 .. n.
    """
    known = restricted(statistics, plan.units).moments
    for site in plan.sites:
        moments = known.get(site.name)
        if moments is None or moments.count == 0 or site.width > WIDEST:
            continue
        factor = plan.factors.get(site.name)
        centred = factor is None or factor.offset is not None
        values = torch.linalg.eigvalsh(moments.covariance if centred else moments.second_moment()).clamp_min(0.0)
        total = float(values.sum())
        if total > 0:  # eigenvalues ascend, so the sum of the first ones is what the rest leaves over
            yield site, [*(values.cumsum(0) / total).flip(0).tolist(), 0.0]


def spectrum_plot(site: SitePlan, left: Sequence[float]) -> str:
    """A site's spectrum as SVG: the share of energy left over at every rank, and where the plan's code lies."""
    figure, axes = _figure(232, 132)
    axes.plot([max(share, LEAST) for share in left], color=_QUIET, linewidth=1.3, clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(LEAST, 1.0)
    axes.set_xlim(0, site.width)
    axes.set_yticks([1, 1e-2, 1e-4, 1e-6], ["100%", "1%", "0.01%", "1e-6"])
    axes.set_xticks([0, site.width])
    words = "left as it is"
    if site.rank is not None:
        chosen = max(1.0 - site.kept_energy, 0.0)  # no less than the best directions leave over
        axes.axvline(site.rank, color=_ON_CODES, linewidth=1.1, linestyle=(0, (3, 2)))
        axes.plot([site.rank], [max(chosen, LEAST)], "o", color=_ON_CODES, markersize=5, clip_on=False)
        near = site.width / 7  # labels nearer than this would touch
        axes.set_xticks([*(end for end in (0, site.width) if abs(end - site.rank) > near), site.rank])
        axes.get_xticklabels()[-1].set(color=_ON_CODES, fontweight="bold")
        words = f"rank {site.rank}: {chosen:.2%} left over"
    return _svg(figure, site.name, f"Spectrum of {site.name}, {site.width} features, {words}")


def speed_plot(timing: Measurement) -> str:
    """Median latency over batch sizes as SVG, a line for each contender, both axes logarithmic."""
    figure, axes = _figure(430, 230)
    sizes = timing.batch_sizes
    axes.set_prop_cycle(color=[_QUIET, _ON_CODES, _ABSORBED, _RESTORED, _INK])
    medians = [[timing.timing(name, size).p50_us for name in timing.contenders] for size in sizes]
    lines = axes.loglog(sizes, medians, "o-", linewidth=1.5, markersize=4, clip_on=False)
    axes.set_xticks(list(sizes), [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(import_for_report("matplotlib.ticker").LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("rows a call", fontsize=_FONT_SIZE, color=_QUIET)
    axes.set_title("p50, microseconds", fontsize=_FONT_SIZE, color=_QUIET, loc="left")
    names = [name.replace("$", r"\$") for name in timing.contenders]  # between two of them would be mathematics
    axes.legend(lines, names, frameon=False, fontsize=_FONT_SIZE, labelcolor=_INK)
    return _svg(figure, "speed", f"Median latency of {', '.join(timing.contenders)} over batch sizes")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of so many CSS pixels, and its axes."""
    figure = import_for_report("matplotlib.figure").Figure((width / 72, height / 72), dpi=72, layout="constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.grid(visible=True, axis="y", color=_RULE, linewidth=0.8)
    axes.tick_params(labelsize=_FONT_SIZE, labelcolor=_QUIET, color=_RULE, length=3)
    axes.minorticks_off()
    axes.spines[["left", "bottom"]].set_color(_RULE)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, name: str, label: str) -> str:
    """The figure as an ``svg`` element; the same figure gives the same text.

    Args:
        figure: drawn in the colours that stand for variables.
        name: tells its parts from those of other figures on the page.
    """
    sink = io.StringIO()
    width, height = figure.get_size_inches() * figure.dpi
    with import_for_report("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(sink, format="svg", transparent=True, metadata=nothing)
    body = sink.getvalue().partition("<defs>")[2].replace("xlink:href", "href")
    body = re.sub(r'<g id="[^"]*">', "<g>", body)  # names of groups, the same in every figure
    for colour, variable in zip(_COLOURS, _VARIABLES, strict=True):
        body = body.replace(colour, f"var({variable})")
    view = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg class="plot" role="img" aria-label="{html.escape(label)}" {view}><defs>{body}'
