"""The plots of a compression's report: the spectrum of a site, and latency over batch sizes."""

from __future__ import annotations

from typing import Any

from afm_fx.benchmark_result import BenchmarkResult
from afm_fx.inline_svg import COLOURS, FONT_SIZE, inline_svg, new_figure
from afm_fx.spectra import Spectrum

SPECTRUM_SIZE, SPEED_SIZE = (232, 132), (430, 230)
"""Width and height in CSS pixels."""

LEAST = 1e-6
"""Shares of energy below this are drawn at the bottom of the plot."""


def spectrum_plot(spectrum: Spectrum) -> str:
    """A site's spectrum as SVG: the share of energy left over at every rank, and where the plan's code lies."""
    figure = new_figure(*SPECTRUM_SIZE)
    axes = _axes(figure)
    shown = [max(share, LEAST) for share in spectrum.left]
    axes.plot(range(len(shown)), shown, color=COLOURS["quiet"], linewidth=1.3, clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(LEAST, 1.0)
    axes.set_xlim(0, spectrum.width)
    axes.set_yticks([1, 1e-2, 1e-4, 1e-6], ["100%", "1%", "0.01%", "1e-6"])
    rank, chosen = spectrum.site.rank, spectrum.chosen
    ticks = {0, spectrum.width}
    label = f"Spectrum of {spectrum.site.name}, {spectrum.width} features, left as it is"
    if rank is not None and chosen is not None:
        axes.axvline(rank, color=COLOURS["on-codes"], linewidth=1.1, linestyle=(0, (3, 2)))
        axes.plot([rank], [max(chosen, LEAST)], "o", color=COLOURS["on-codes"], markersize=5, clip_on=False)
        far = spectrum.width / 7  # ticks nearer than this would touch
        ticks = {tick for tick in ticks if abs(tick - rank) > far} | {rank}
        label = f"Spectrum of {spectrum.site.name}, {spectrum.width} features, rank {rank}: {chosen:.2%} left over"
    axes.set_xticks(sorted(ticks))
    for tick in axes.get_xticklabels():
        if rank is not None and tick.get_text() == str(rank):
            tick.set_color(COLOURS["on-codes"])
            tick.set_fontweight("bold")
    return inline_svg(figure, f"spectrum of {spectrum.site.name}", label)


def speed_plot(timing: BenchmarkResult) -> str:
    """Median latency over batch sizes as SVG, a line for each contender, both axes logarithmic."""
    figure = new_figure(*SPEED_SIZE)
    from matplotlib.ticker import LogLocator  # noqa: PLC0415 - an extra, and slow to import

    axes = _axes(figure)
    sizes = timing.settings.batch_sizes
    tones = ("quiet", "on-codes", "absorbed", "restored", "ink")
    lines = []
    for place, name in enumerate(timing.contenders):
        medians = [timing.timing(name, size).p50_us for size in sizes]
        tone = COLOURS[tones[place % len(tones)]]
        lines += axes.plot(sizes, medians, "o-", color=tone, linewidth=1.5, markersize=4, clip_on=False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(sizes), [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("rows a call", fontsize=FONT_SIZE, color=COLOURS["quiet"])
    axes.set_title("p50, microseconds", fontsize=FONT_SIZE, color=COLOURS["quiet"], loc="left")
    names = [name.replace("$", r"\$") for name in timing.contenders]  # between two of them would be mathematics
    axes.legend(lines, names, frameon=False, fontsize=FONT_SIZE, labelcolor=COLOURS["ink"])
    return inline_svg(figure, "speed", f"Median latency of {', '.join(timing.contenders)} over batch sizes")


def _axes(figure: Any) -> Any:
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.grid(visible=True, axis="y", color=COLOURS["rule"], linewidth=0.8)
    axes.tick_params(labelsize=FONT_SIZE, labelcolor=COLOURS["quiet"], color=COLOURS["rule"], length=3)
    axes.minorticks_off()
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(COLOURS["rule"])
    return axes
