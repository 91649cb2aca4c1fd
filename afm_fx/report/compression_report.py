"""The report of a compression: what became smaller, by how much, and why not everything."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afm_fx.calibration import Statistics
from afm_fx.io import builtins_of, refuse_existing_file, render_table, write_text
from afm_fx.planning import Plan
from afm_fx.program import Program

if TYPE_CHECKING:  # facts come from rooms that take long to import, and a report may have none
    from afm_fx.measure import Measurement, QualityComparison
    from afm_fx.recovery import RecoveryReport
    from afm_fx.runtime import AotiReport, ExportReport, PackReport, PrecisionReport


@dataclass(frozen=True)
class ReportFacts:
    """What was done and measured beyond the report; what is None or empty was not.

    Attributes:
        timing: original and compressed model side by side, the original first.
        quality: of both on rows with labels.
        exports: of both.
        buckets: of the compressed model with fixed shapes, one per batch size.
        package: of the compressed model, compiled with AOTInductor.
        command: the command line that repeats the compression.
    """

    timing: Measurement | None = None
    quality: QualityComparison | None = None
    exports: tuple[ExportReport, ExportReport] | None = None
    buckets: tuple[ExportReport, ...] = ()
    package: AotiReport | None = None
    packing: PackReport | None = None
    precision: PrecisionReport | None = None
    recovery: RecoveryReport | None = None
    command: str = ""


@dataclass(frozen=True)
class CompressionReport:
    """What a plan made of a model, before packing.

    Attributes:
        original: the captured model; its page draws spectra and the graph from it, so its weights stay alive.
        statistics: that the plan was made from.
    """

    original: Program = field(repr=False)
    statistics: Statistics = field(repr=False)
    plan: Plan
    parameters_after: int
    bytes_after: int

    @property
    def parameters_before(self) -> int:
        """Parameters of the original."""
        return self.original.parameter_count()

    @property
    def bytes_before(self) -> int:
        """Bytes of the original's parameters and buffers."""
        return self.original.state_bytes()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the model and the plan."""
        return *self.original.warnings, *self.plan.warnings

    def table(self) -> str:
        """Sizes as text."""
        sites = self.plan.sites
        factored = f"{sum(site.rank is not None for site in sites)} of {len(sites)}"
        rows = [
            size_row("parameters", self.parameters_before, self.parameters_after),
            size_row("bytes", self.bytes_before, self.bytes_after),
            ("factored sites", "", factored, ""),
        ]
        text = render_table("", ("", "original", "low-rank", "smaller"), rows)
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])

    def to_json(self, facts: ReportFacts | None = None) -> str:
        """The numbers, the policy and the plan's sites as a JSON document; with facts, also what they say of files."""
        document: dict[str, Any] = {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "front_door": self.original.front_door,
            "policy": self.plan.policy,
            "basis": self.plan.basis,
            "sites": self.plan.sites,
            "refused": self.plan.refused,
            "warnings": self.warnings,
            "evidence": self.plan.evidence,
        }
        if facts is not None:
            document |= {name: getattr(facts, name) for name in ("packing", "precision", "recovery")}
            document["exports"] = [_export_entry(export) for export in facts.exports or ()]
            document["buckets"] = [_export_entry(export) for export in facts.buckets]
        return json.dumps(builtins_of(document), indent=2)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Compression",
        facts: ReportFacts | None = None,
        force: bool = False,
    ) -> None:
        """Writes one HTML file that needs nothing else: sizes, ranks, spectra, and where fusion stopped and why.

        What ``facts`` leaves out (speed, quality, exported files, the command) is said not to have been measured.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
            UserError: nothing can be written there.
            MissingPackageError: the extra ``report`` is not installed.
        """
        from afm_fx.report.page import report_page  # noqa: PLC0415 - it draws with what imports this module

        refuse_existing_file(Path(path), force=force)
        write_text(Path(path), report_page(self, title, facts), force=force)


def size_row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    """A size before and after, and how many times smaller it became, as text."""
    return name, f"{before:,}", f"{after:,}", f"{before / max(after, 1):.2f}x"


def _export_entry(export: ExportReport) -> dict[str, Any]:
    names = ("bytes", "parameters", "opset", "operators", "max_abs_difference")
    return {"file": export.path.name, **{name: getattr(export, name) for name in names}}
