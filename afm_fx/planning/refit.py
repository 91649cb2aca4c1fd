"""A saved plan for a fresh checkpoint of the same model, without calibration.

Models are retrained hourly, and what their traffic looks like changes slower than their weights. Ranks, joint tables
and dropped units stay as the plan has them; bases are made again.

* **Tables.** The moments of looked up features depend only on how often every row is looked up. The counts that
  calibration took, times the new table, give them exactly.
* **Linears, and gradients.** Where rows are given, the fresh checkpoint runs on them; some thousands are enough.
  Otherwise the moments and gradients of the earlier checkpoint stand in, and only the weights that are encoded are new.

Constants of dropped units stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from afm_fx.calibration import Moments, Statistics, Tap, calibrate, joint_taps, plain_taps, table_moments
from afm_fx.errors import PlanError
from afm_fx.io import render_table
from afm_fx.planning.apply_plan import check_site
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.constant_units import restricted, without_units
from afm_fx.planning.plan import Plan, SitePlan
from afm_fx.planning.planning import SENSITIVITY_ROWS
from afm_fx.planning.site_bases import SiteBases, weights_of
from afm_fx.program import Inputs, Program, require_program
from passes.codes import Factor
from passes.graph import PassError
from passes.sites import SiteKind

LOST = 0.02
"""Calibration is due where a site's code keeps so much less of its energy than it did when the plan was made."""


@dataclass(frozen=True)
class SiteDrift:
    """What became of one factored site.

    Attributes:
        kept_then: share of the features' energy about their mean that the code kept when the plan was made.
        kept_by_old: the share that the plan's own factor keeps of the new features.
        kept_now: the share that the new factor keeps.
    """

    name: str
    kept_then: float
    kept_by_old: float
    kept_now: float

    @property
    def lost(self) -> bool:
        """Whether the rank tells less of the features than it did."""
        return self.kept_now < self.kept_then - LOST


@dataclass(frozen=True)
class Refit:
    """A plan for a fresh checkpoint, and the drift of every factored site."""

    plan: Plan
    drift: tuple[SiteDrift, ...]

    @property
    def calibration_is_due(self) -> bool:
        """Whether some site has changed so much that ranks should be chosen again."""
        return any(site.lost for site in self.drift)

    def table(self) -> str:
        """The drift as text, one line per site."""
        rows = [
            (each.name, f"{each.kept_then:.2%}", f"{each.kept_by_old:.2%}", f"{each.kept_now:.2%}",
             "calibrate again" if each.lost else "")
            for each in self.drift
        ]  # fmt: skip
        columns = ("site", "energy kept then", "by the old factor now", "by the new factor", "")
        return render_table("drift", columns, rows)


def refit_plan(program: Program, plan: Plan, statistics: Statistics, rows: Iterable[Inputs] | None = None) -> Refit:
    """Makes a plan's factors again for a fresh checkpoint of its model, from saved statistics.

    Args:
        program: the fresh checkpoint, captured. Tables may have rows added at their end.
        plan: of the earlier checkpoint.
        statistics: that the plan was made from.
        rows: batches of recent rows, without labels, for Linears and gradients; None for what the statistics say.

    Raises:
        PlanError: the plan belongs to another model, or the statistics lack what a basis of the plan needs.
        CalibrationError: the statistics belong to another model, or there are no batches.
        BatchError: a batch does not fit.
    """
    require_program(program, "afm_fx.refit_plan")
    try:
        trimmed = without_units(program, plan.units)
    except PassError as error:
        raise PlanError(f"the plan does not fit this program: {error}") from error
    if rows is not None:
        found = calibrate(program, rows, sensitivity_rows=SENSITIVITY_ROWS if statistics.sensitivities else 0)
        statistics = replace(statistics, moments=found.moments, sensitivities=found.sensitivities)
    known = restricted(statistics, plan.units)
    taps = {tap.site.name: tap for tap in (*plain_taps(trimmed.graph_module), *joint_taps(trimmed.graph_module))}
    sites: list[SitePlan] = []
    factors: dict[str, Factor] = {}
    drift: list[SiteDrift] = []
    for site in plan.sites:
        if site.name not in taps:
            raise PlanError(f"the plan is for another model: it knows site '{site.name}', the program does not")
        tap = taps[site.name]
        check_site(site, tap.site)
        shape, traffic = site.shape, known.traffic.get(site.name)
        if site.kind is SiteKind.EMBEDDING:
            shape = (tap.site.rows, site.width)
            if traffic is not None:
                known = replace(known, traffic={**known.traffic, site.name: traffic.grown_to(tap.site.rows)})
        if site.rank is None:
            sites.append(replace(site, shape=shape))
            continue
        moments = _moments(tap, trimmed, known)
        fresh = replace(known, moments={**known.moments, site.name: moments})
        bases = SiteBases(trimmed, tap, fresh, one_centre=plan.basis == BasisKind.MEASURED)
        basis = bases[BasisKind(site.basis)]
        factors[site.name] = basis.factor(site.rank)
        kept = basis.kept_energy(site.rank)
        old = 1.0 - _left_out(plan.factors[site.name], moments)
        drift.append(SiteDrift(site.name, site.kept_energy, old, kept))
        sites.append(
            replace(site, shape=shape, kept_energy=kept, predicted_error=basis.error(site.rank), logit_errors={})
        )
    added = sum(
        (new.shape[0] - old.shape[0]) * (new.width if new.rank is None else new.rank)
        for old, new in zip(plan.sites, sites, strict=True)
        if new.kind is SiteKind.EMBEDDING
    )
    made = replace(
        plan,
        sites=tuple(sites), factors=factors,
        parameters_before=program.parameter_count(), parameters_after=plan.parameters_after + added,
        logit_error=None, predicted_logit_error=None, evidence=(),
    )  # fmt: skip
    return Refit(made, tuple(drift))


def _moments(tap: Tap, program: Program, statistics: Statistics) -> Moments:
    """What the fresh checkpoint's features look like."""
    known = statistics.moments.get(tap.site.name)
    if known is None:
        raise PlanError(f"the statistics know no site '{tap.site.name}'")
    traffic = statistics.traffic.get(tap.site.name)
    if tap.site.kind is SiteKind.LINEAR or traffic is None or traffic.pooled:
        return known
    return table_moments(weights_of(program, tap), traffic.counts)


def _left_out(factor: Factor, moments: Moments) -> float:
    """The share of the features' energy (about their mean, or about zero if uncentred) that a factor does not tell."""
    total = float(moments.covariance.trace())
    if factor.offset is None:
        total += float(moments.mean.square().sum())
    if total <= 0:
        return 0.0
    # y - decode(encode(y)) is affine in y: its error is that of its linear part about the mean, and its value there.
    rest = torch.eye(factor.width, dtype=torch.float64) - factor.decoder @ factor.encoder
    bias = moments.mean - factor.decode(factor.encode(moments.mean))
    error = float((rest @ moments.covariance @ rest.mT).trace() + bias.square().sum())
    return error / total
