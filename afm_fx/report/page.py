"""A compression as one HTML page: sizes, speed, quality, ranks, spectra, the graph, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rich import filesize

from afm_fx.io import this_machine
from afm_fx.measure import QualityComparison
from afm_fx.planning import SitePlan
from afm_fx.report.compression_report import CompressionReport, ReportFacts, size_row
from afm_fx.report.explanation import explain_plan
from afm_fx.report.page_templates import render_page
from afm_fx.report.plots import spectra_of, spectrum_plot, speed_plot
from afm_fx.version import __version__
from passes.sites import SiteKind

MOST_SPECTRA = 48
"""Spectra on a page; of more sites, those with the most parameters are drawn."""


def report_page(report: CompressionReport, title: str, facts: ReportFacts | None = None) -> str:
    """The page of a compression; facts that are left out are said not to have been measured.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    facts = facts or ReportFacts()
    plots = _spectra(report)
    return render_page(
        "report.html",
        explain_plan(report.original, report.plan),
        title=title,
        report=report,
        plan=report.plan,
        facts=facts,
        tiles=list(_tiles(report, facts)),
        sizes=list(_sizes(report, facts)),
        quality=[] if facts.quality is None else list(_quality(facts.quality)),
        measured=any(site.logit_errors for site in report.plan.sites),
        rows=[(site, _parameters_after(site), _error(site), list(_notes(site))) for site in report.plan.sites],
        plots=plots,
        undrawn=len(report.plan.sites) - len(plots),
        speed=None if facts.timing is None else speed_plot(facts.timing),
        version=__version__,
        machine=this_machine(),
        policy=_policy(report.plan.policy),
    )


def _tiles(report: CompressionReport, facts: ReportFacts) -> Iterator[tuple[str, str, str]]:
    """The numbers at the top of the page: what it is of, the number after, and what became of it in words."""
    before, after = report.parameters_before, report.parameters_after
    yield "parameters", f"{after:,}", f"of {before:,}, {before / max(after, 1):.1f}x smaller"
    what, before, after = "weights", report.bytes_before, report.bytes_after
    if facts.exports is not None:
        what, before, after = "ONNX file", facts.exports[0].bytes, facts.exports[1].bytes
    yield what, filesize.decimal(after), f"of {filesize.decimal(before)}, {before / max(after, 1):.1f}x smaller"
    if facts.timing is not None and len(facts.timing.contenders) > 1:
        sizes = facts.timing.batch_sizes
        size = sizes[len(sizes) // 2]
        dense, low_rank = (facts.timing.timing(name, size).p50_us for name in facts.timing.contenders[:2])
        change = f"{dense / low_rank:.2f}x faster" if dense >= low_rank else f"{low_rank / dense:.2f}x slower"
        yield f"p50 at batch {size:,}", f"{low_rank:,.0f} µs", f"of {dense:,.0f} µs, {change}"
    if facts.recovery is not None:
        error = facts.recovery.epochs[facts.recovery.best].logit_rmse
        yield "logit error", f"{error:.3g}", "root mean square, held-out rows, recovered"
    elif report.plan.logit_error is not None:
        yield "logit error", f"{report.plan.logit_error:.3g}", "root mean square, held-out rows"
    if facts.quality is not None:
        tasks = facts.quality.tasks
        mean = sum(task.auc_after for task in tasks) / len(tasks)
        change = f"{mean - sum(task.auc_before for task in tasks) / len(tasks):+.4f}"
        yield "AUC", f"{mean:.4f}", f"{change} on {facts.quality.rows:,} labelled rows"


def _sizes(report: CompressionReport, facts: ReportFacts) -> Iterator[tuple[str, ...]]:
    """What became smaller, before, after, and how many times."""
    yield size_row("parameters, before packing", report.parameters_before, report.parameters_after)
    yield size_row("bytes, before packing", report.bytes_before, report.bytes_after)
    if facts.packing is not None:
        before, after = facts.packing.before, facts.packing.after
        yield size_row("operators, before and after packing", before.operators, after.operators)
    if facts.precision is not None:
        precision = facts.precision
        yield size_row("bytes, tables in fewer bits", precision.bytes_before, precision.bytes_after)
    if facts.exports is not None:
        dense, low_rank = facts.exports
        yield size_row("bytes of the ONNX file", dense.bytes, low_rank.bytes)
        yield size_row("operators in the ONNX file", dense.node_count, low_rank.node_count)
        differences = dense.max_abs_difference, low_rank.max_abs_difference
        if None not in differences:
            yield "largest difference of the file to PyTorch", *(f"{number:.1e}" for number in differences), ""


def _quality(quality: QualityComparison) -> Iterator[tuple[str, ...]]:
    """AUC and LogLoss of every task before, after, their change and its standard error."""
    for place, task in enumerate(quality.tasks, 1):
        number = "" if len(quality.tasks) == 1 else f" {place}"
        for name, before, after, change in (
            ("AUC", task.auc_before, task.auc_after, task.auc_drop),
            ("LogLoss", task.log_loss_before, task.log_loss_after, task.log_loss_rise),
        ):
            error = f"{change.standard_error:.4f}"
            yield f"{name}{number}", f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}", error


def _parameters_after(site: SitePlan) -> int:
    """What is left of a site's weight: columns of codes, or two thin Linears."""
    if site.rank is None:
        return site.shape[0] * site.shape[1]
    return site.rank * (site.shape[0] if site.kind is SiteKind.EMBEDDING else sum(site.shape))


def _error(site: SitePlan) -> str:
    """The logit error on held-out rows, or the features' error where none was measured; empty where left alone."""
    return "" if site.rank is None else f"{site.logit_errors.get(site.basis, site.predicted_error):.3g}"


def _notes(site: SitePlan) -> Iterator[str]:
    if site.reason and (site.rank is None or not site.logit_errors):  # else the error, which has its own column
        yield site.reason
    if site.coverage is not None:
        rows = site.shape[0]
        yield f"all {rows:,} rows seen" if site.coverage.rows_seen == rows else site.coverage.describe(rows)


def _spectra(report: CompressionReport) -> list[tuple[SitePlan, str]]:
    """Plots of the sites with the most parameters, in the plan's order."""
    largest = sorted(report.plan.sites, key=lambda site: -site.shape[0] * site.shape[1])[:MOST_SPECTRA]
    drawn = replace(report.plan, sites=tuple(site for site in report.plan.sites if site in largest))
    spectra = spectra_of(report.statistics, drawn)
    return [(site, spectrum_plot(site, left)) for site, left in spectra]


def _policy(described: Mapping[str, Any]) -> str:
    """The policy as it would be called, without what was left out."""
    fields = {name: value for name, value in described.items() if name != "policy" and value not in (None, {}, [])}
    return f"{described.get('policy', '')}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
