"""The report of a compression: what became smaller, by how much, and why not everything."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from afm_fx.calibration import Statistics
from afm_fx.evidence import Evidence
from afm_fx.output_directory import refuse_existing_file, write_text
from afm_fx.plan import Plan, SitePlan
from afm_fx.program import Program
from afm_fx.tables import render_table

if TYPE_CHECKING:
    from afm_fx.report_facts import ReportFacts


@dataclass(frozen=True)
class Background:
    """What the page of a report is drawn from: spectra and the graph are made when a page is asked for.

    Attributes:
        original: the captured model.
        plan: that was applied to it.
        statistics: that the plan was made from.
    """

    original: Program
    plan: Plan
    statistics: Statistics


@dataclass(frozen=True)
class CompressionReport:
    """Sizes before and after, and the site plans.

    Attributes:
        parameters_before: parameters of the original.
        parameters_after: parameters of the low-rank program.
        bytes_before: bytes of the original's state.
        bytes_after: bytes of the low-rank program's state.
        front_door: how the model was captured.
        policy: the policy, as JSON.
        basis: where the bases come from.
        sites: one entry per factorable site.
        refused: (site, reason) of the others.
        warnings: what a user should know.
        evidence: what the policy measured on the low-rank program.
        background: what :meth:`to_html` draws from; it keeps the original's weights alive. Not in the JSON.
    """

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    front_door: str
    policy: dict[str, object]
    basis: str
    sites: tuple[SitePlan, ...]
    refused: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    evidence: tuple[Evidence, ...] = ()
    background: Background | None = field(default=None, repr=False, compare=False)

    @property
    def compression_ratio(self) -> float:
        """Parameters before over parameters after."""
        return self.parameters_before / max(self.parameters_after, 1)

    def table(self) -> str:
        """Sizes as text."""
        rows = [
            (
                "parameters",
                f"{self.parameters_before:,}",
                f"{self.parameters_after:,}",
                f"{self.compression_ratio:.2f}x",
            ),
            (
                "bytes",
                f"{self.bytes_before:,}",
                f"{self.bytes_after:,}",
                f"{self.bytes_before / max(self.bytes_after, 1):.2f}x",
            ),
            ("factored sites", "", f"{sum(site.rank is not None for site in self.sites)} of {len(self.sites)}", ""),
        ]
        text = render_table("", ("", "original", "low-rank", "smaller"), rows)
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])

    def to_json(self) -> str:
        """Everything but the background as a JSON document."""
        document = asdict(replace(self, background=None))
        del document["background"]
        return json.dumps(document, indent=2)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Compression",
        facts: ReportFacts | None = None,
        force: bool = False,
    ) -> None:
        """Writes one HTML file that needs nothing else: sizes, ranks, spectra, and where fusion stopped and why.

        Args:
            path: file to write.
            title: heading of the page.
            facts: what was measured beyond the report: speed, quality, exported files, the command. What is left out
                is said not to have been measured.
            force: replace a file that exists.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
            UserError: nothing can be written there, or the report has no background.
            MissingPackageError: the extra ``report`` is not installed.
        """
        from afm_fx.report_page import report_page  # noqa: PLC0415 - it draws with what imports this module

        refuse_existing_file(Path(path), force=force)
        write_text(Path(path), report_page(self, title, facts), force=force)


def report_of(original: Program, low_rank: Program, plan: Plan, statistics: Statistics) -> CompressionReport:
    """The report of a plan that was applied."""
    return CompressionReport(
        parameters_before=original.parameter_count(),
        parameters_after=low_rank.parameter_count(),
        bytes_before=original.state_bytes(),
        bytes_after=low_rank.state_bytes(),
        front_door=original.front_door,
        policy=dict(plan.policy),
        basis=plan.basis,
        sites=plan.sites,
        refused=tuple(plan.refused.items()),
        warnings=(*original.warnings, *plan.warnings),
        evidence=plan.evidence,
        background=Background(original, plan, statistics),
    )
