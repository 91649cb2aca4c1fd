"""Planning: statistics and a policy become a plan."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from afm_fx.basis import Basis, BasisKind, eigenbasis, weight_second_moment
from afm_fx.calibration import Statistics
from afm_fx.errors import CalibrationError, CalibrationWarning, PolicyError
from afm_fx.moments import Moments
from afm_fx.plan import Plan, SitePlan
from afm_fx.policies import Policy
from afm_fx.program import Program
from afm_fx.situation import Choice, Situation
from passes.graph_tools import constant_of
from passes.sink_codes import analyze
from passes.sites import Site, SiteKind, find_sites

MAX_CHOICES = 5
"""How often a policy is asked at most."""


def make_plan(program: Program, statistics: Statistics, policy: Policy, *, basis: str | BasisKind = "afm") -> Plan:
    """Picks a rank and a basis per site.

    Args:
        program: the captured model.
        statistics: of this program's sites.
        policy: picks the ranks.
        basis: "afm" (eigenvectors of the features' covariance on the calibration rows) or "weight_svd" (of the
            weights alone; the calibration rows then only measure the error).

    Raises:
        PolicyError: the policy asks for something impossible.
        CalibrationError: the statistics belong to another model.
    """
    try:
        kind = BasisKind(basis)
    except ValueError:
        raise PolicyError(f"there is no basis '{basis}'; choose one of {[kind.value for kind in BasisKind]}") from None
    factorable = tuple(site for site in find_sites(program.graph_module) if site.refusal is None)
    bases = {site.name: _basis(program, site, _moments(statistics, site), kind) for site in factorable}
    uncentred = frozenset(name for name, site_basis in bases.items() if site_basis.centre is None)
    analysis = analyze(program.graph_module, uncentred=uncentred)
    messages = tuple(
        _thin(site, rows) for site in factorable if (rows := statistics.moments[site.name].count) < site.width
    )
    situation = Situation(factorable, bases, analysis.ledger)
    choices, parameters = _chosen(program, policy, situation, uncentred)
    ranks = {name: choice.rank for name, choice in choices.items()}
    for message in messages:
        warnings.warn(message, CalibrationWarning, stacklevel=2)
    return Plan(
        sites=tuple(_site_plan(site, bases[site.name], choices[site.name], statistics) for site in factorable),
        factors={name: bases[name].factor(rank) for name, rank in ranks.items() if rank is not None},
        refused={site.name: site.refusal for site in analysis.sites if site.refusal is not None},
        policy=policy.describe(),
        basis=kind.value,
        parameters_before=program.parameter_count(),
        parameters_after=parameters,
        warnings=messages,
    )


def _chosen(
    program: Program, policy: Policy, situation: Situation, uncentred: frozenset[str]
) -> tuple[dict[str, Choice], int]:
    """The policy's choices, and the exact parameter count of the program that they make.

    The situation's ledger is that of all sites factored. Where a site is left alone whose features are added to those
    of another, the rewrite restores more, and may keep more parameters than the ledger says: a policy with a budget
    is then asked again, with that much in reserve.
    """
    for _ in range(MAX_CHOICES):
        choices = policy.choose(situation)
        ranks = {name: choice.rank for name, choice in choices.items() if choice.rank is not None}
        exact = analyze(program.graph_module, uncentred=uncentred, only=ranks).ledger.total(ranks)
        overshoot = exact - situation.ledger.total(ranks)
        if overshoot <= situation.reserve:
            break
        situation = replace(situation, reserve=overshoot)
    return choices, exact


def _site_plan(site: Site, basis: Basis, choice: Choice, statistics: Statistics) -> SitePlan:
    rank = choice.rank
    return SitePlan(
        name=site.name,
        kind=site.kind,
        shape=(site.rows, site.width) if site.kind is SiteKind.EMBEDDING else (site.width, site.rows),
        rank=rank,
        reason=choice.reason,
        kept_energy=1.0 if rank is None else basis.kept_energy(rank),
        predicted_error=0.0 if rank is None else float(basis.discarded[rank]),
        rows_seen=statistics.moments[site.name].count,
    )


def _weight(program: Program, site: Site) -> Tensor:
    return program.graph_module.get_parameter(site.parameter)


def _bias(program: Program, site: Site) -> Tensor | None:
    """The bias of a Linear site (of its first use)."""
    if site.kind is SiteKind.EMBEDDING:
        return None
    node = next(node for node in program.graph_module.graph.nodes if node.name == site.nodes[0])
    return constant_of(program.graph_module, node.args[2]) if len(node.args) > 2 else None


def _moments(statistics: Statistics, site: Site) -> Moments:
    moments = statistics.moments.get(site.name)
    if moments is None or moments.width != site.width:
        found = "no entry" if moments is None else f"{moments.width} features"
        raise CalibrationError(
            f"the statistics belong to another model: site '{site.name}' has {site.width} features, "
            f"they have {found} for it"
        )
    if moments.count == 0:
        raise CalibrationError(f"site '{site.name}' saw no rows in calibration")
    return moments


def _thin(site: Site, rows: int) -> str:
    return (
        f"site '{site.name}' saw {rows} rows for {site.width} features: "
        "its covariance is shrunk toward its weights'. Calibrate on more rows"
    )


def _basis(program: Program, site: Site, moments: Moments, kind: BasisKind) -> Basis:
    weight = _weight(program, site)
    if kind is BasisKind.WEIGHT_SVD:
        bias = _bias(program, site)
        centre = None if bias is None or not site.centred else bias.detach().to(torch.float64).cpu()
        return eigenbasis(weight_second_moment(weight, site.kind), _about(moments, centre), centre)
    centre = moments.mean if site.centred else None
    covariance = _about(moments, centre)
    metric = covariance
    if moments.count < site.width:
        metric = _shrunk(covariance, weight_second_moment(weight, site.kind), moments.count)
    return eigenbasis(metric, covariance, centre)


def _about(moments: Moments, centre: Tensor | None) -> Tensor:
    """The second moment about a centre (None: about zero)."""
    distance = moments.mean if centre is None else moments.mean - centre
    return moments.covariance + torch.outer(distance, distance)


def _shrunk(covariance: Tensor, prior: Tensor, rows: int) -> Tensor:
    """``N / (N + n) C + n / (N + n) P``, the prior scaled to the covariance's trace (or taken alone where C is 0)."""
    width = covariance.shape[0]
    energy, prior_energy = covariance.trace(), prior.trace()
    scale = energy / prior_energy if energy > 0 and prior_energy > 0 else torch.ones(())
    return (rows * covariance + width * scale * prior) / (rows + width)
