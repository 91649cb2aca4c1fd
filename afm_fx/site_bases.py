"""The candidate bases of a site, from its weights and from what calibration saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from afm_fx.basis import Basis, BasisKind, eigenbasis, metric_basis, scaled, weight_second_moment
from afm_fx.calibration import Statistics
from afm_fx.errors import CalibrationError
from afm_fx.moments import Moments
from afm_fx.program import Program
from afm_fx.sensitivity import Sensitivity
from afm_fx.taps import Tap
from passes.graph_tools import constant_of
from passes.sites import Site, SiteKind


class SiteBases:
    """The bases of one site, each made when it is first asked for.

    Args:
        program: the captured model.
        tap: of the site.
        statistics: of this program.
        one_centre: give the basis of the weights the mean on real rows as its centre too, as the others have it.

    Raises:
        CalibrationError: the statistics belong to another model, or saw no rows of the site.
    """

    def __init__(self, program: Program, tap: Tap, statistics: Statistics, *, one_centre: bool = False) -> None:
        self._program, self._tap, self._site = program, tap, tap.site
        self._one_centre = one_centre
        self._moments = _moments(statistics, tap.site)
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
        centre = self._moments.mean if self._site.centred else None
        if kind is BasisKind.WEIGHT_SVD:
            if not self._one_centre:
                bias = self._bias()
                centre = None if bias is None or centre is None else bias.detach().to(torch.float64).cpu()
            return eigenbasis(self._weight_second_moment(), _about(self._moments, centre), centre)
        seen = _about(self._moments, centre)
        thin = self._moments.count < self._site.width
        covariance = _shrunk(seen, self._weight_second_moment(), self._moments.count) if thin else seen
        if kind is BasisKind.AFM:
            return eigenbasis(covariance, seen, centre)
        if self._sensitivity is None:
            raise CalibrationError(
                f"the basis '{kind}' needs gradients, and the statistics hold none: calibrate with sensitivity_rows"
            )
        return metric_basis(_METRICS[kind](self._sensitivity, covariance), covariance, seen, centre)

    def _weight_second_moment(self) -> Tensor:
        names = (self._site.parameter,) if self._tap.joint is None else self._tap.joint.parameters
        weights = [self._program.graph_module.get_parameter(name) for name in names]
        return weight_second_moment(weights, self._site.kind)

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


def bases_of(
    program: Program, taps: Sequence[Tap], statistics: Statistics, *, one_centre: bool = False
) -> dict[str, SiteBases]:
    """The candidate bases of every tapped site, by its name.

    Args:
        one_centre: see :class:`SiteBases`.

    Raises:
        CalibrationError: the statistics belong to another model, or saw no rows of a site.
    """
    return {tap.site.name: SiteBases(program, tap, statistics, one_centre=one_centre) for tap in taps}


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
