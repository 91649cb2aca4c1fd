"""A compression as one HTML page that loads nothing: sizes, speed, quality, ranks, spectra, the graph, the recipe."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from afm_fx import __version__
from afm_fx.errors import MissingPackageError, UserError
from afm_fx.explanation import explain_plan
from afm_fx.machine import this_machine
from afm_fx.page_templates import page_template
from afm_fx.picture_parts import picture_parts
from afm_fx.plan import Plan, SitePlan
from afm_fx.report import CompressionReport
from afm_fx.report_facts import ReportFacts
from afm_fx.report_plots import spectrum_plot, speed_plot
from afm_fx.spectra import WIDEST, spectra_of
from passes.sites import SiteKind

MOST_SPECTRA = 48
"""Spectra on a page; of more sites, those with the most parameters are drawn."""


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top of the page.

    Attributes:
        label: what it is of.
        value: the number after.
        change: what became of it, in words.
    """

    label: str
    value: str
    change: str


@dataclass(frozen=True)
class SiteRow:
    """A site in the table of ranks.

    Attributes:
        site: its plan.
        before: parameters of its weight.
        after: parameters of its codes, or of the two thin Linears.
        share: after over before in percent, as a bar is drawn.
        error: logit error on held-out rows, or the features' error where none was measured; empty where left alone.
        notes: why, and what calibration saw of a table.
    """

    site: SitePlan
    before: int
    after: int
    share: float
    error: str
    notes: tuple[str, ...]


def check_report_packages() -> None:
    """Imports what a page is drawn with, so that hours of work do not end in a missing package.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    for package in ("jinja2", "matplotlib", "pygraphviz"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingPackageError(f"a report needs {package}: pip install 'afm-fx[report]'") from error


def report_page(report: CompressionReport, title: str, facts: ReportFacts | None = None) -> str:
    """The page.

    Args:
        report: of :func:`afm_fx.compress`.
        title: heading.
        facts: see :class:`~afm_fx.report_facts.ReportFacts`.

    Raises:
        UserError: the report has no background.
        MissingPackageError: the extra ``report`` is not installed.
    """
    template = page_template("report.html")
    if report.background is None:
        raise UserError("a page is drawn from the report of afm_fx.compress itself, not from one that was put together")
    facts, plan = facts or ReportFacts(), report.background.plan
    explanation = explain_plan(report.background.original, plan)
    plots, undrawn = _spectra(report)
    machine = this_machine()
    page: str = template.render(
        title=title,
        report=report,
        plan=plan,
        facts=facts,
        tiles=list(_tiles(report, facts)),
        measured=any(site.logit_errors for site in plan.sites),
        rows=[_row(site) for site in plan.sites],
        units=[(name, len(units.dropped), units.constants.shape[0]) for name, units in plan.units.items()],
        plots=plots,
        undrawn=undrawn,
        speed=None if facts.timing is None else speed_plot(facts.timing),
        explanation=explanation,
        parts=picture_parts(explanation),
        rows_seen=report.background.statistics.rows,
        batches=report.background.statistics.batches,
        versions=[("afm-fx", __version__), ("Python", machine.python), *machine.packages],
        machine=machine,
        policy=_policy(report),
        error_text=error_text,
    )
    return page


def _tiles(report: CompressionReport, facts: ReportFacts) -> Iterator[Tile]:
    before, after = report.parameters_before, report.parameters_after
    yield Tile("parameters", f"{after:,}", f"of {before:,}, {report.compression_ratio:.1f}x smaller")
    if facts.exports is not None:
        dense, low_rank = facts.exports
        times = dense.bytes / max(low_rank.bytes, 1)
        yield Tile("ONNX file", size_text(low_rank.bytes), f"of {size_text(dense.bytes)}, {times:.1f}x smaller")
    else:
        times = report.bytes_before / max(report.bytes_after, 1)
        yield Tile(
            "weights", size_text(report.bytes_after), f"of {size_text(report.bytes_before)}, {times:.1f}x smaller"
        )
    if facts.timing is not None:
        yield from _speed_tile(facts)
    plan = report.background.plan if report.background else None
    if facts.recovery is not None:
        found = facts.recovery.epochs[facts.recovery.best]
        yield Tile("logit error", error_text(found.logit_rmse), "root mean square, held-out rows, recovered")
    elif plan is not None and plan.logit_error is not None:
        yield Tile("logit error", error_text(plan.logit_error), "root mean square, held-out rows")
    if facts.quality is not None:
        tasks = facts.quality.tasks
        after_auc = sum(task.auc_after for task in tasks) / len(tasks)
        change = after_auc - sum(task.auc_before for task in tasks) / len(tasks)
        yield Tile("AUC", f"{after_auc:.4f}", f"{change:+.4f} on {facts.quality.rows:,} labelled rows")


def _speed_tile(facts: ReportFacts) -> Iterator[Tile]:
    timing = facts.timing
    if timing is None or len(timing.contenders) < 2:
        return
    size = timing.settings.batch_sizes[len(timing.settings.batch_sizes) // 2]
    dense, low_rank = (timing.timing(name, size) for name in timing.contenders[:2])
    times = dense.p50_us / low_rank.p50_us
    change = f"{times:.2f}x faster" if times >= 1 else f"{1 / times:.2f}x slower"
    yield Tile(f"p50 at batch {size:,}", f"{low_rank.p50_us:,.0f} µs", f"of {dense.p50_us:,.0f} µs, {change}")


def _row(site: SitePlan) -> SiteRow:
    before = site.shape[0] * site.shape[1]
    after = before if site.rank is None else site.rank * _per_rank(site)
    error = ""
    if site.rank is not None:
        measured = site.logit_errors.get(site.basis)
        error = f"{site.predicted_error:.3g}" if measured is None else f"{measured:.2g}"
    return SiteRow(site, before, after, 100 * min(after / max(before, 1), 1.0), error, tuple(_notes(site)))


def _notes(site: SitePlan) -> Iterator[str]:
    if site.reason and (site.rank is None or not site.logit_errors):  # else the error, which has its own column
        yield site.reason
    if site.coverage is not None:
        rows = site.shape[0]
        yield f"all {rows:,} rows seen" if site.coverage.rows_seen == rows else site.coverage.describe(rows)


def _per_rank(site: SitePlan) -> int:
    """Scalars that one more column of code costs: a column of codes, or one of each thin Linear."""
    return site.shape[0] if site.kind is SiteKind.EMBEDDING else sum(site.shape)


def _spectra(report: CompressionReport) -> tuple[list[tuple[SitePlan, Any]], int]:
    """The plots in the plan's order, and how many sites have none."""
    background = report.background
    if background is None:
        return [], 0
    plan = background.plan
    narrow = [site for site in plan.sites if site.width <= WIDEST]
    largest = sorted(narrow, key=lambda site: -site.shape[0] * site.shape[1])[:MOST_SPECTRA]
    chosen = {site.name for site in largest}
    few = Plan(tuple(site for site in plan.sites if site.name in chosen), plan.factors, units=plan.units)
    plots = [(each.site, spectrum_plot(each)) for each in spectra_of(background.original, background.statistics, few)]
    return plots, len(plan.sites) - len(plots)


def error_text(error: float) -> str:
    """A root mean squared error: four decimals, or two digits of a smaller one."""
    return f"{error:.4f}" if error >= 1e-3 or error == 0 else f"{error:.2g}"


def size_text(size: int) -> str:
    """Bytes in words, with decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size:,} bytes"


def _policy(report: CompressionReport) -> str:
    """The policy as it would be called, without what was left out."""
    fields = {name: value for name, value in report.policy.items() if name != "policy" and value not in (None, {}, [])}
    return f"{report.policy.get('policy', '')}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
