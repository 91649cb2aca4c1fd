"""Planning: statistics and a policy become a plan."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from afm_fx.calibration import Statistics, Tap, joined, joint_taps, plain_taps
from afm_fx.errors import CalibrationError, CalibrationWarning, PolicyError
from afm_fx.planning.allocation import Frontier, Rank
from afm_fx.planning.basis import Basis
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.constant_units import constant_units, restricted, without_units
from afm_fx.planning.cost import CostKind, Ranks, RewriteCosts
from afm_fx.planning.plan import Evidence, Plan, SitePlan
from afm_fx.planning.simulation import Simulation
from afm_fx.planning.site_bases import SiteBases, SiteErrors
from afm_fx.program import Inputs, Program, require_program
from passes.sites import Site, find_sites, site_name

LEAST_ROWS = 2
"""Fewer rows have no covariance."""
SENSITIVITY_ROWS = 32_768
"""Calibration rows on which gradients are taken."""

MEASURED_ROWS = 4096
"""Held-out rows on which logit errors are measured."""

NEGLIGIBLE_ENERGY = 1e-12
"""Share of a site's energy that is rounding."""

NEGLIGIBLE_LOGIT_ERROR = 1e-9
"""Share of the logits' variance that is rounding in float32."""

FINE_WIDTH = 64
COARSE_RANKS = (*range(9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 65, 8), *range(80, 129, 16),
                *range(160, 257, 32))  # fmt: skip
"""Ranks tried for sites wider than that: fine where a rank weighs much, multiples of the vector width further on."""


@dataclass(frozen=True)
class Decision:
    """What a policy chose, and what it measured for that.

    Attributes:
        ranks: by name of every site that may be factored; None leaves it as it is.
        reasons: why, by site name, one sentence each; :meth:`PlanningTask.reason` where there is none.
        evidence: what was measured on programs made on the way.
    """

    ranks: Ranks
    reasons: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()


class Policy(ABC):
    """Picks a rank per site. A policy is a frozen dataclass with one method, :meth:`choose`.

    Attributes:
        measures: whether it gains from measured logit errors.
        joins_tables: whether tables looked up by the same ids become one site, where errors are measured: one code for
            them saves parameters, but no arithmetic.
    """

    measures: ClassVar[bool] = True
    joins_tables: ClassVar[bool] = False

    @abstractmethod
    def choose(self, task: PlanningTask) -> Decision:
        """One rank per site of the task.

        Raises:
            PolicyError: what the policy asks for is impossible.
        """

    def describe(self) -> dict[str, Any]:
        """The policy as JSON, kept in the plan: its name and fields."""
        return {"policy": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


def require_policy(given: object) -> None:
    """Refuses something else where a policy is taken, and says what one looks like.

    Raises:
        PolicyError: the thing given is no policy.
    """
    if isinstance(given, Policy):
        return
    share = given if isinstance(given, float) and 0 < given <= 1 else 0.5
    raise PolicyError(
        f"a policy is afm_fx.Budget({share}), afm_fx.Energy(0.99), afm_fx.Fixed(...) or the like, got {given!r}"
    )


def make_plan(
    program: Program,
    statistics: Statistics,
    policy: Policy,
    *,
    basis: str | BasisKind | None = None,
    held_out: Iterable[Inputs] | None = None,
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
            (:mod:`afm_fx.calibration.sensitivity`), or "weight_svd" (of the weights alone; the calibration rows then
            only measure the error). Left out: "measured" with held-out rows, or else "afm".
        held_out: batches of rows that the statistics have not seen, without labels; the first 4,096 rows are used.

    Raises:
        PolicyError: the policy asks for something impossible.
        CalibrationError: the statistics belong to another model, or are of one row.
        UserError: ``program`` is no program.
    """
    require_program(program, "afm_fx.make_plan")
    require_policy(policy)
    kind = BasisKind(basis or (BasisKind.AFM if held_out is None else BasisKind.MEASURED))
    if statistics.rows < LEAST_ROWS:
        raise CalibrationError(
            f"these statistics are of {statistics.rows} row(s), which do not vary: calibrate on a few thousand rows"
        )
    if kind is BasisKind.MEASURED and not policy.measures:
        kind = BasisKind.AFM
    if kind is BasisKind.MEASURED and held_out is None:
        raise PolicyError('basis="measured" needs rows to measure on: give held_out batches')
    rows: list[Inputs] = []
    if held_out is not None and kind is BasisKind.MEASURED:
        rows = held_out if isinstance(held_out, list) else list(held_out)  # a list may know where its rows come from
    task = PlanningTask(program, statistics, kind, rows, joins_tables=policy.joins_tables)
    plan = task.plan(policy)
    for message in plan.warnings:
        warnings.warn(message, CalibrationWarning, stacklevel=2)
    return plan


class PlanningTask:
    """What a policy decides on; several policies may share one, and with it all that was measured.

    Attributes:
        program: the original.
        module: the graph whose sites are planned, joint tables without data.
        taps: of the sites that may be factored, in graph order.
        units: hidden units to keep, by layer.
        statistics: of the sites of ``module``.
        kind: of the bases; each site's own where errors are measured.
        bases: the candidates, by site name.
        errors: measured logit errors, None where nothing is measured.

    Args:
        rows: held-out batches to measure on, empty where nothing is measured.
        joins_tables: make tables looked up by the same ids one site, where errors are measured.

    Raises:
        CalibrationError: the statistics belong to another model.
    """

    def __init__(
        self, program: Program, statistics: Statistics, kind: BasisKind, rows: list[Inputs], *, joins_tables: bool
    ) -> None:
        measured = kind is BasisKind.MEASURED
        self.program, self.kind = program, kind
        self.units = constant_units(program, statistics, rows, max_rows=MEASURED_ROWS) if measured else {}
        self.statistics = restricted(statistics, self.units)
        trimmed = without_units(program, self.units)
        joint = joint_taps(trimmed.graph_module) if measured and joins_tables else ()
        parts = {name for tap in joint if tap.joint is not None for name in tap.joint.tables}
        order = {node.name: place for place, node in enumerate(trimmed.graph_module.graph.nodes)}
        plain = [tap for tap in plain_taps(trimmed.graph_module) if tap.site.name not in parts]
        self.taps = tuple(sorted((*plain, *joint), key=lambda tap: min(order[name] for name in tap.nodes)))
        self.module = joined(trimmed.graph_module, [tap.site.name for tap in joint])
        self.bases = {tap.site.name: SiteBases(trimmed, tap, self.statistics, one_centre=measured) for tap in self.taps}
        self.errors: SiteErrors | None = None
        if measured:
            reference = Simulation(program, rows, (), max_rows=MEASURED_ROWS).original if self.units else None
            simulation = Simulation(trimmed, rows, self.taps, max_rows=MEASURED_ROWS, reference=reference)
            self.errors = SiteErrors(simulation, self.bases)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that may be factored, in graph order."""
        return tuple(tap.site for tap in self.taps)

    def site(self, name: str) -> Site | None:
        """The site of a name; the weight's full name is understood too."""
        return next((site for site in self.sites if site.name in (name, site_name(name))), None)

    def basis(self, name: str) -> Basis:
        """A site's basis that energies are counted in: AFM's where each site has its own."""
        return self.bases[name][BasisKind.AFM if self.errors is not None else self.kind]

    @cached_property
    def costs(self) -> RewriteCosts:
        """What the programs cost that ranks make, before packing."""
        return RewriteCosts(self.module, [site.name for site in self.sites if self.basis(site.name).centre is None])

    def loss(self, name: str, rank: int) -> float:
        """What a site loses at a rank: mean squared logit error, or its share of lost energy where none is measured."""
        if self.errors is None:
            return 1.0 - self.basis(name).kept_energy(rank)
        return self.errors.best(name, rank)[1]

    def levels(self, site: Site) -> list[int]:
        """The ranks to consider for a site: all of them, or of a wide one whose errors are measured, some.

        Rank 0, a constant row, is considered only where its error is measured.
        """
        if self.errors is None:
            return list(range(1, site.width + 1))
        if site.width <= FINE_WIDTH:
            return list(range(site.lowest_rank, site.width + 1))
        return [rank for rank in COARSE_RANKS if site.lowest_rank <= rank < site.width]

    def frontier(self, kind: CostKind) -> Frontier:
        """The frontier of losses over an estimated cost."""
        measured = self.errors
        negligible = NEGLIGIBLE_ENERGY
        if measured is not None:
            negligible = NEGLIGIBLE_LOGIT_ERROR * measured.simulation.variance
        return Frontier(
            {site.name: self.levels(site) for site in self.sites},
            self.loss,
            self.costs.estimate(kind),
            negligible=negligible,
            measured=None if measured is None else measured.together,
        )

    def reason(self, name: str, rank: Rank) -> str:
        """Why a site has a rank."""
        if rank is None:
            return "leaving it alone costs no more than its code would"
        if self.errors is None:
            return f"keeps {self.basis(name).kept_energy(rank):.2%} of the energy"
        error = f"a logit error of {self.loss(name, rank) ** 0.5:.2g}"
        return f"one constant row stands for all, at {error}" if rank == 0 else error

    def plan(self, policy: Policy) -> Plan:
        """The policy's plan, with what is measured on the program that it makes.

        Raises:
            PolicyError: it asks for something impossible.
        """
        decision = policy.choose(self)
        ranks, errors = decision.ranks, self.errors
        predicted = None
        if errors is not None:
            predicted = math.sqrt(sum(self.loss(name, rank) for name, rank in ranks.items() if rank is not None))
        return replace(
            self.assemble(ranks, decision.reasons),
            policy=policy.describe(),
            parameters_after=int(self.costs.exact(CostKind.PARAMETERS, ranks)),
            warnings=_thin(self.sites, self.statistics),
            logit_error=None if errors is None else math.sqrt(errors.together(ranks)),
            predicted_logit_error=predicted,
            evidence=decision.evidence,
        )

    def assemble(self, ranks: Ranks, reasons: Mapping[str, str] | None = None) -> Plan:
        """The plan of some ranks, before anything is counted or measured on the program that it makes."""
        named = {} if reasons is None else reasons
        return Plan(
            sites=tuple(
                self._site_plan(tap, rank, named.get(tap.site.name) or self.reason(tap.site.name, rank))
                for tap in self.taps
                for rank in [ranks[tap.site.name]]
            ),
            factors={
                name: self.bases[name][self._kind_at(name, rank)].factor(rank)
                for name, rank in ranks.items()
                if rank is not None
            },
            refused={site.name: site.refusal for site in find_sites(self.module) if site.refusal is not None},
            basis=self.kind.value,
            parameters_before=self.program.parameter_count(),
            units=self.units,
        )

    def _site_plan(self, tap: Tap, rank: Rank, reason: str) -> SitePlan:
        site, traffic = tap.site, self.statistics.traffic.get(tap.site.name)
        planned = SitePlan(
            site.name, site.kind, site.shape, rank, reason,
            kept_energy=1.0, predicted_error=0.0,
            tables=() if tap.joint is None else tap.joint.tables,
            coverage=None if traffic is None else traffic.coverage,
        )  # fmt: skip
        if rank is None:
            return planned
        kind = self._kind_at(site.name, rank)
        basis = self.bases[site.name][kind]
        tried = {} if self.errors is None else self.errors.candidates(site.name, rank)
        return replace(
            planned,
            kept_energy=basis.kept_energy(rank),
            predicted_error=basis.error(rank),
            basis=kind.value,
            logit_errors={name.value: math.sqrt(error) for name, error in tried.items()},
            rows=round(self.statistics.moments[site.name].count),
        )

    def _kind_at(self, name: str, rank: int) -> BasisKind:
        return self.kind if self.errors is None else self.errors.best(name, rank)[0]


def _thin(sites: Sequence[Site], statistics: Statistics) -> tuple[str, ...]:
    """One warning for all sites that saw fewer rows than they have features."""
    thin = [site for site in sites if statistics.moments[site.name].count < site.width]
    if not thin:
        return ()
    thin.sort(key=lambda site: statistics.moments[site.name].count / site.width)
    first, named, more = thin[0], ", ".join(f"'{site.name}'" for site in thin[1:4]), len(thin) - 4
    others = named and f", and too few for {named}{f' and {more} more' if more > 0 else ''}"
    return (
        f"site '{first.name}' saw {statistics.moments[first.name].count:.0f} rows for {first.width} features{others}: "
        "what they leave out is taken from the weights. Calibrate on more rows",
    )
