"""The candidate bases of a site, from its weights and from what calibration saw, and which of them errs least.

A table's rows that calibration did not see belong to no moments of traffic. They will be asked for all the same, in a
share ``p`` of the lookups (:mod:`afm_fx.calibration.traffic`), so bases and centres are made for the mixture to come:
with mean ``m`` and covariance ``C`` of the traffic, and ``u`` and ``D`` those of the rows not seen,

    mean (1 - p) m + p u,     covariance (1 - p) C + p D + p (1 - p) (u - m)(u - m)^T.

Errors are still those on the calibration rows. Rows that were never trained are noise of equal variance in all
directions about zero: mixed in, they turn no eigenvector of the covariance, and move the centre by ``p`` of the way.

Where there are fewer rows than features, what the rows seen leave out is taken from the weights: the covariance is
``(1 - u) C + u P``, ``P`` what the weights make of inputs that are all alike (``W W^T``), scaled to the trace of ``C``.
The share ``u`` is that of a fresh row's energy outside the span of the rows seen, as each row seen tells of the others
(:func:`unseen_energy`). Inputs of low rank, which the method rests on, soon leave nothing out, and ``P`` would turn the
basis away from them; of inputs of full rank, few rows leave out nearly all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from afm_fx.calibration import Moments, Sensitivity, Statistics, Tap, table_moments
from afm_fx.errors import CalibrationError
from afm_fx.planning.basis import NEGLIGIBLE, Basis, eigenbasis, metric_basis, scaled, weight_second_moment
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.simulation import Simulation
from afm_fx.program import Program
from passes.codes import Factor
from passes.graph import constant_of
from passes.sites import Site, SiteKind

ANCHORS = (1, 3, 8, 24, 64, 160)
"""Ranks at which all kinds of bases are tried. In between, those are that did well at the anchor below."""

CLOSE = 1.2
"""A kind within this ratio of the best one's error at an anchor is tried at the ranks above it too."""


class SiteBases:
    """The bases of one site, each made when it is first asked for.

    Args:
        one_centre: give the basis of the weights the mean on real rows as its centre too, as the others have it.

    Raises:
        CalibrationError: the statistics belong to another model, or saw no rows of the site.
    """

    def __init__(self, program: Program, tap: Tap, statistics: Statistics, *, one_centre: bool = False) -> None:
        self._program, self._tap, self._site = program, tap, tap.site
        self._one_centre = one_centre
        self._moments = _moments(statistics, tap.site)
        self._traffic = statistics.traffic.get(tap.site.name)
        self._sensitivity = statistics.sensitivities.get(tap.site.name)
        self._made: dict[BasisKind, Basis] = {}

    @property
    def kinds(self) -> tuple[BasisKind, ...]:
        """The kinds that there are statistics for."""
        always = (BasisKind.AFM, BasisKind.WEIGHT_SVD)
        return always if self._sensitivity is None else (*_METRICS, *always)

    def __getitem__(self, kind: BasisKind) -> Basis:
        """The basis of a kind.

        Raises:
            CalibrationError: the statistics hold no sensitivities, which the kind needs.
        """
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    def _make(self, kind: BasisKind) -> Basis:
        expected = self._expected
        centre = expected.mean if self._site.centred else None
        if kind is BasisKind.WEIGHT_SVD:
            if not self._one_centre:
                bias = self._bias()
                centre = None if bias is None or centre is None else bias.detach().to(torch.float64).cpu()
            return eigenbasis(self._weight_second_moment(), self._moments.second_moment(centre), centre)
        seen = self._moments.second_moment(centre)
        covariance = expected.second_moment(centre)
        if self._moments.count < self._site.width:
            prior = self._weight_second_moment()
            share = unseen_energy(self._moments.covariance, prior, self._moments.count)
            covariance = _shrunk(covariance, prior, share)
        if kind is BasisKind.AFM:
            return eigenbasis(covariance, seen, centre)
        if self._sensitivity is None:
            raise CalibrationError(
                f"the basis '{kind}' needs gradients, and the statistics hold none: calibrate with sensitivity_rows"
            )
        return metric_basis(_METRICS[kind](self._sensitivity, covariance), covariance, seen, centre)

    @cached_property
    def _expected(self) -> Moments:
        """The moments of the traffic to come, rows that calibration did not see included."""
        traffic = self._traffic
        if traffic is None or traffic.pooled or traffic.rows_seen == traffic.rows:
            return self._moments
        share = traffic.unseen_share
        unseen = table_moments(self._weights(), ~traffic.seen)
        return self._moments.scaled((1 - share) / self._moments.count) + unseen.scaled(share / unseen.count)

    def _weight_second_moment(self) -> Tensor:
        return weight_second_moment(self._weights(), self._site.kind)

    def _weights(self) -> list[nn.Parameter]:
        return weights_of(self._program, self._tap)

    def _bias(self) -> Tensor | None:
        """The bias of a Linear site (of its first use)."""
        if self._site.kind is SiteKind.EMBEDDING:
            return None
        module = self._program.graph_module
        node = next(node for node in module.graph.nodes if node.name == self._site.nodes[0])
        return constant_of(module, node.args[2]) if len(node.args) > 2 else None


def _mixed(*metrics: Tensor, covariance: Tensor) -> Tensor:
    return torch.stack([scaled(metric, covariance) for metric in metrics]).sum(dim=0)


_METRICS: Mapping[BasisKind, Callable[[Sensitivity, Tensor], Tensor]] = {
    BasisKind.GRADIENT: lambda found, _: found.gradient,
    BasisKind.CONSUMER: lambda found, _: found.consumer,
    BasisKind.GRADIENT_AND_AFM: lambda found, covariance: _mixed(
        found.gradient, torch.eye(covariance.shape[0], dtype=torch.float64), covariance=covariance
    ),
    BasisKind.GRADIENT_AND_CONSUMER: lambda found, covariance: _mixed(
        found.gradient, found.consumer, covariance=covariance
    ),
}


class SiteErrors:
    """Mean squared logit errors with one site factored and all others as they are; each measured when asked for."""

    def __init__(self, simulation: Simulation, bases: Mapping[str, SiteBases]) -> None:
        self.simulation = simulation
        self._bases = bases
        self._measured: dict[tuple[str, int], dict[BasisKind, float]] = {}

    def candidates(self, site: str, rank: int) -> Mapping[BasisKind, float]:
        """The errors of the kinds tried at a rank."""
        key = (site, rank)
        if key not in self._measured:
            bases = self._bases[site]
            self._measured[key] = {
                kind: self.simulation.error({site: bases[kind].factor(rank)}) for kind in self._kinds(site, rank)
            }
        return self._measured[key]

    def best(self, site: str, rank: int) -> tuple[BasisKind, float]:
        """The kind with the smallest error at a rank, and that error."""
        found = self.candidates(site, rank)
        kind = min(found, key=found.__getitem__)
        return kind, found[kind]

    def factor(self, site: str, rank: int) -> Factor:
        """The factor of the best kind."""
        return self._bases[site][self.best(site, rank)[0]].factor(rank)

    def together(self, ranks: Mapping[str, int | None]) -> float:
        """The measured error with all sites factored that have a rank."""
        factors = {name: self.factor(name, rank) for name, rank in ranks.items() if rank is not None}
        return self.simulation.error(factors)

    def _kinds(self, site: str, rank: int) -> tuple[BasisKind, ...]:
        if rank == 0:
            return (BasisKind.AFM,)  # a constant row is the same for all
        below = [anchor for anchor in ANCHORS if anchor <= rank]
        if rank in ANCHORS or not below:
            return self._bases[site].kinds
        found = self.candidates(site, below[-1])
        limit = CLOSE * min(found.values())
        return tuple(kind for kind, error in found.items() if error <= limit)


def weights_of(program: Program, tap: Tap) -> list[nn.Parameter]:
    """A site's weight, or the tables that a joint one joins."""
    names = (tap.site.parameter,) if tap.joint is None else tap.joint.parameters
    return [program.graph_module.get_parameter(name) for name in names]


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


def _shrunk(covariance: Tensor, prior: Tensor, share: float) -> Tensor:
    """``(1 - u) C + u P``, the prior scaled to the covariance's trace (or taken alone where C is 0)."""
    energy, prior_energy = covariance.trace(), prior.trace()
    if prior_energy <= 0:
        return covariance
    return (1 - share) * covariance + share * energy / prior_energy * prior if energy > 0 else prior


def unseen_energy(seen: Tensor, prior: Tensor, rows: float) -> float:
    """The share of a fresh row's energy, in the metric of the prior, that lies outside the span of the rows seen.

    What row i leaves outside the span of the others is ``1 / (G^-1)_ii``, ``G`` the products of the whitened rows with
    each other: on average about the harmonic mean of G's eigenvalues. Its energy is on average their arithmetic mean.
    Both are taken of the covariance's nonzero eigenvalues, which are the same but for a factor.

    Args:
        seen: [n, n], of the rows about their mean.
        prior: [n, n], the covariance that the features would have if nothing were known but the weights.
        rows: how many there were.
    """
    values, vectors = torch.linalg.eigh(prior)
    known = values > NEGLIGIBLE * values[-1]
    root = vectors[:, known] / values[known].sqrt()
    spectrum = torch.linalg.eigvalsh(root.mT @ seen @ root).flip(0).clamp_min(0.0)
    independent = max(int(rows) - 1, 0)
    if not independent or not len(spectrum) or spectrum[0] <= 0:
        return 1.0
    if independent >= len(spectrum):
        return 0.0  # they span all that there is
    spectrum = spectrum[:independent]
    if spectrum[-1] <= NEGLIGIBLE * spectrum[0]:
        return 0.0  # the last rows brought nothing new
    return float(1 / (spectrum.reciprocal().mean() * spectrum.mean()))
