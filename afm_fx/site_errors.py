"""The logit error of every site, basis and rank, measured on rows that no basis was made from."""

from __future__ import annotations

from collections.abc import Mapping

from afm_fx.basis import BasisKind
from afm_fx.simulation import Simulation
from afm_fx.site_bases import SiteBases
from passes.factor import Factor

ANCHORS = (1, 3, 8, 24, 64, 160)
"""Ranks at which all kinds of bases are tried. In between, those are that did well at the anchor below."""

CLOSE = 1.2
"""A kind within this ratio of the best one's error at an anchor is tried at the ranks above it too."""


class SiteErrors:
    """Mean squared logit errors with one site factored and all others as they are; each measured when asked for.

    Args:
        simulation: the program on the held-out rows.
        bases: of every site.
    """

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
