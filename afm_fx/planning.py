"""Planning: statistics and a policy become a plan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from afm_fx.basis import BasisKind
from afm_fx.calibration import Statistics
from afm_fx.constant_units import constant_units, restricted, touched, without_units
from afm_fx.costs import Costs
from afm_fx.errors import CalibrationWarning, PolicyError
from afm_fx.inputs import Inputs
from afm_fx.plan import Plan, SitePlan
from afm_fx.policies import Policy
from afm_fx.program import Program
from afm_fx.simulation import Simulation
from afm_fx.site_bases import SiteBases, bases_of
from afm_fx.site_errors import SiteErrors
from afm_fx.situation import Choice, Decision, Situation
from afm_fx.taps import Tap, joined, joint_taps, plain_taps
from afm_fx.traffic import Coverage, coverage_of, traffic_of
from passes.drop_units import Units, kept_name
from passes.factor import Factor
from passes.sink_codes import Analysis, analyze
from passes.sites import Site, SiteKind

MAX_CHOICES = 5
"""How often a policy is asked at most."""

MEASURED_ROWS = 4096
"""Held-out rows on which logit errors are measured."""


def make_plan(
    program: Program,
    statistics: Statistics,
    policy: Policy,
    *,
    basis: str | BasisKind | None = None,
    held_out: Iterable[Inputs] | None = None,
    unseen_share: float | None = None,
) -> Plan:
    """Picks a rank and a basis per site.

    With held-out rows, every site's logit error is measured for several bases and ranks: the plan takes the best basis
    for each, hidden units that are constant on real rows are left out, and a ``Budget`` goes where it saves most.

    Args:
        program: the captured model.
        statistics: of this program's sites.
        policy: picks the ranks.
        basis: "measured" (for each site the one of the smallest measured logit error), "afm" (eigenvectors of the
            features' covariance on the calibration rows), "gradient", "consumer" and their mixtures
            (:mod:`afm_fx.sensitivity`), or "weight_svd" (of the weights alone; the calibration rows then only measure
            the error). Left out: "measured" with held-out rows, or else "afm".
        held_out: batches of rows that the statistics have not seen, without labels; the first 4,096 rows are used.
        unseen_share: the share of later lookups to expect on table rows that calibration did not see, 0 to 1; bases
            are made for that mixture. Left out: estimated for each table (:mod:`afm_fx.traffic`).

    Raises:
        PolicyError: the policy asks for something impossible, or the share is none.
        CalibrationError: the statistics belong to another model.
    """
    kind = BasisKind(basis or (BasisKind.AFM if held_out is None else BasisKind.MEASURED))
    if kind is BasisKind.MEASURED and not policy.measures:
        kind = BasisKind.AFM
    if kind is BasisKind.MEASURED and held_out is None:
        raise PolicyError('basis="measured" needs rows to measure on: give held_out batches')
    rows = list(held_out) if held_out is not None and kind is BasisKind.MEASURED else []
    if unseen_share is not None and not 0 <= unseen_share <= 1:
        raise PolicyError(f"unseen_share is a share from 0 to 1, got {unseen_share!r}")
    task = PlanningTask.of(
        program,
        statistics,
        kind,
        rows,
        joins_tables=policy.joins_tables,
        unseen_share=unseen_share,
    )
    plan = task.plan(policy)
    for message in plan.warnings:
        warnings.warn(message, CalibrationWarning, stacklevel=2)
    return plan


def _predicted(errors: SiteErrors, ranks: Mapping[str, int]) -> float:
    return math.sqrt(sum(errors.best(name, rank)[1] for name, rank in ranks.items()))


@dataclass(frozen=True)
class PlanningTask:
    """What plans of one program are made of; several policies may share one, and with it all that was measured.

    Attributes:
        module: the graph whose sites are planned, joint tables without data.
        taps: of the sites that may be factored.
        units: hidden units to keep, by layer.
        statistics: of the sites of ``module``.
        bases: by site name.
        kind: which of them.
        situation: what the policy is told.
        refused: reason by name of the other sites.
        coverage: of the tables that were counted, by site name.
    """

    module: GraphModule
    taps: tuple[Tap, ...]
    units: Mapping[str, Units]
    statistics: Statistics
    bases: Mapping[str, SiteBases]
    kind: BasisKind
    situation: Situation
    refused: Mapping[str, str]
    coverage: Mapping[str, Coverage]

    @staticmethod
    def of(
        program: Program,
        statistics: Statistics,
        kind: BasisKind,
        rows: list[Inputs],
        *,
        joins_tables: bool,
        unseen_share: float | None = None,
    ) -> PlanningTask:
        """Everything that is known before a policy decides.

        Args:
            program: the captured model.
            statistics: of this program.
            kind: of the bases.
            rows: held-out batches to measure on, empty where nothing is measured.
            joins_tables: make tables looked up by the same ids one site, where errors are measured.
            unseen_share: see :func:`make_plan`.

        Raises:
            CalibrationError: the statistics belong to another model.
        """
        measured = kind is BasisKind.MEASURED
        units = constant_units(program, statistics, rows, max_rows=MEASURED_ROWS) if measured else {}
        trimmed, known = without_units(program, units), restricted(statistics, program, units)
        joint = joint_taps(trimmed.graph_module) if measured and joins_tables else ()
        parts = {name for tap in joint if tap.joint is not None for name in tap.joint.tables}
        module = joined(trimmed.graph_module, [tap.site.name for tap in joint])
        order = {node.name: place for place, node in enumerate(trimmed.graph_module.graph.nodes)}
        plain = [tap for tap in plain_taps(trimmed.graph_module) if tap.site.name not in parts]
        taps = tuple(sorted((*plain, *joint), key=lambda tap: min(order[name] for name in tap.nodes)))
        bases = bases_of(trimmed, taps, known, one_centre=measured, unseen_share=unseen_share)
        errors = None
        if measured:
            reference = Simulation(program, rows, (), max_rows=MEASURED_ROWS).original if units else None
            simulation = Simulation(trimmed, rows, taps, max_rows=MEASURED_ROWS, reference=reference)
            errors = SiteErrors(simulation, bases)
        single = {name: bases[name][BasisKind.AFM if measured else kind] for name in bases}
        analysis = _analysis(module, single, {tap.site.name: tap.site.width for tap in taps})
        situation = Situation(
            sites=tuple(tap.site for tap in taps),
            bases=single,
            ledger=analysis.ledger,
            dense_parameters=program.parameter_count(),
            errors=errors,
            costs=Costs(program, module, analysis.ledger, _uncentred(single)),
            program=program,
            renamed={name: kept_name(name) for name in touched(program, units)},
        )
        refused = {site.name: site.refusal for site in analysis.sites if site.refusal is not None}
        later = traffic_of(program, rows, MEASURED_ROWS) if rows else {}
        coverage = {
            name: coverage_of(traffic, later.get(name), unseen_share) for name, traffic in statistics.traffic.items()
        }
        return PlanningTask(module, taps, units, known, bases, kind, situation, refused, coverage)

    def plan(self, policy: Policy) -> Plan:
        """The policy's plan.

        Raises:
            PolicyError: it asks for something impossible.
        """
        decision, parameters = self.decide(policy)
        return self.finish(decision, parameters, policy.describe())

    def finish(self, decision: Decision, parameters: int, policy: Mapping[str, Any]) -> Plan:
        """The plan of a decision, with what is measured on the program that it makes.

        Args:
            decision: a policy's.
            parameters: of the program that it makes.
            policy: the policy as JSON.
        """
        ranks = {name: choice.rank for name, choice in decision.choices.items() if choice.rank is not None}
        errors = self.situation.errors
        return replace(
            self.assemble(decision.choices),
            policy=policy,
            parameters_after=parameters,
            warnings=tuple(
                _thin(tap.site, count)
                for tap in self.taps
                if (count := self.statistics.moments[tap.site.name].count) < tap.site.width
            ),
            logit_error=None if errors is None else math.sqrt(errors.together(ranks)),
            predicted_logit_error=None if errors is None else _predicted(errors, ranks),
            evidence=decision.evidence,
        )

    def assemble(self, choices: Mapping[str, Choice]) -> Plan:
        """The plan of some choices, before anything is counted or measured on the program that it makes."""
        return Plan(
            sites=tuple(self.site_plan(tap, choices[tap.site.name]) for tap in self.taps),
            factors={
                name: self.factor(name, choice.rank) for name, choice in choices.items() if choice.rank is not None
            },
            refused=self.refused,
            basis=self.kind.value,
            parameters_before=self.situation.dense_parameters,
            units=self.units,
        )

    def decide(self, policy: Policy) -> tuple[Decision, int]:
        """The policy's choices, and the exact parameter count of the program that they make.

        The situation's ledger is that of all sites factored. Where a site is left alone whose features are added to
        those of another, the rewrite restores more, and may keep more parameters than the ledger says: a policy with a
        budget is then asked again, with that much in reserve.
        """
        situation = replace(self.situation, assemble=self.assemble)
        for _ in range(MAX_CHOICES):
            decision = policy.choose(situation)
            ranks = {name: choice.rank for name, choice in decision.choices.items() if choice.rank is not None}
            exact = self.parameters(ranks)
            overshoot = exact - situation.ledger.total(ranks)
            if overshoot <= situation.reserve or decision.final:
                break
            situation = replace(situation, reserve=overshoot)
        return decision, exact

    def parameters(self, ranks: Mapping[str, int]) -> int:
        """The exact parameter count of the program that some ranks make."""
        return _analysis(self.module, self.situation.bases, ranks).ledger.total(ranks)

    def factor(self, name: str, rank: int) -> Factor:
        """The factor of a site at a rank."""
        return self.bases[name][self._kind_at(name, rank)].factor(rank)

    def site_plan(self, tap: Tap, choice: Choice) -> SitePlan:
        """The plan of one site."""
        site, rank = tap.site, choice.rank
        shape = (site.rows, site.width) if site.kind is SiteKind.EMBEDDING else (site.width, site.rows)
        tables = () if tap.joint is None else tap.joint.tables
        seen = round(self.statistics.moments[site.name].count)
        coverage = self.coverage.get(site.name)
        if rank is None:
            return SitePlan(
                site.name, site.kind, shape, None, choice.reason, 1.0, 0.0, seen, tables=tables, coverage=coverage
            )
        kind = self._kind_at(site.name, rank)
        basis, errors = self.bases[site.name][kind], self.situation.errors
        tried = {} if errors is None else errors.candidates(site.name, rank)
        return SitePlan(
            name=site.name,
            kind=site.kind,
            shape=shape,
            rank=rank,
            reason=choice.reason,
            kept_energy=basis.kept_energy(rank),
            predicted_error=basis.error(rank),
            rows_seen=seen,
            basis=kind.value,
            tables=tables,
            logit_errors={name.value: math.sqrt(error) for name, error in tried.items()},
            coverage=coverage,
        )

    def _kind_at(self, name: str, rank: int) -> BasisKind:
        return self.kind if self.situation.errors is None else self.situation.errors.best(name, rank)[0]


def _analysis(module: GraphModule, bases: Mapping[str, object], only: Mapping[str, int]) -> Analysis:
    return analyze(module, uncentred=_uncentred(bases), only=only)


def _uncentred(bases: Mapping[str, object]) -> frozenset[str]:
    return frozenset(name for name, basis in bases.items() if getattr(basis, "centre", None) is None)


def _thin(site: Site, rows: float) -> str:
    return (
        f"site '{site.name}' saw {rows:.0f} rows for {site.width} features: "
        "its covariance is shrunk toward its weights'. Calibrate on more rows"
    )
