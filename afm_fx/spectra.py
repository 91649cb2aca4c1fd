"""Spectra: how much of every site's features the directions of the calibration rows hold, most first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from afm_fx.calibration import Statistics
from afm_fx.constant_units import restricted
from afm_fx.plan import Plan, SitePlan
from afm_fx.program import Program

WIDEST = 2_048
"""Features of the widest site whose eigenvalues are taken: their price grows with the third power."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one site.

    Attributes:
        site: what the plan does with it.
        left: [n + 1], share of the features' energy that the best r directions leave over, for r = 0 .. n.
    """

    site: SitePlan
    left: tuple[float, ...]

    @property
    def width(self) -> int:
        """Number n of features."""
        return len(self.left) - 1

    @property
    def chosen(self) -> float | None:
        """The share that the plan's own code leaves over, no less than the best directions do; None without a code."""
        return None if self.site.rank is None else max(1.0 - self.site.kept_energy, 0.0)


def spectra_of(program: Program, statistics: Statistics, plan: Plan) -> Iterator[Spectrum]:
    """The spectra of a plan's sites, in its order; sites wider than :data:`WIDEST` have none.

    Energy is counted about the mean, or about zero for a site whose code has no offset.

    Args:
        program: the captured model.
        statistics: of this program.
        plan: made from them.
    """
    known = restricted(statistics, program, plan.units).moments
    for site in plan.sites:
        moments = known.get(site.name)
        if moments is None or moments.count == 0 or site.width > WIDEST:
            continue
        factor = plan.factors.get(site.name)
        centred = factor is None or factor.offset is not None
        values = torch.linalg.eigvalsh(moments.covariance if centred else moments.second_moment).clamp_min(0.0)
        total = float(values.sum())
        if total <= 0:
            continue
        left = (values.cumsum(0) / total).flip(0).tolist()  # ascending, so a prefix is what the rest leaves over
        yield Spectrum(site, (*left, 0.0))
