"""The report of a compression: what became smaller, by how much, and why not everything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from afm_fx.evidence import Evidence
from afm_fx.plan import Plan, SitePlan
from afm_fx.program import Program
from afm_fx.tables import render_table


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
        """Everything as a JSON document."""
        return json.dumps(asdict(self), indent=2)


def report_of(original: Program, low_rank: Program, plan: Plan) -> CompressionReport:
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
    )
