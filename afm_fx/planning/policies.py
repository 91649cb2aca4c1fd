"""Policies that set ranks site by site: all of them, by hand, or by energy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from afm_fx.errors import PolicyError
from afm_fx.planning.allocation import Rank
from afm_fx.planning.cost import CostKind
from afm_fx.planning.planning import Decision, PlanningTask, Policy
from passes.sites import Site, SiteKind


@dataclass(frozen=True)
class FullRank(Policy):
    """Every site at its full width: changes nothing but the form. It proves the surgery; it saves nothing."""

    measures: ClassVar[bool] = False

    def choose(self, task: PlanningTask) -> Decision:
        """Every site at its width."""
        return Decision({site.name: site.width for site in task.sites}, {site.name: "full rank" for site in task.sites})


@dataclass(frozen=True)
class Fixed(Policy):
    """One rank per kind of site, with exceptions by name.

    Sites no wider than the rank, and sites where the code would not save parameters, are left alone.

    Attributes:
        embedding: code width of every table, None to leave tables alone.
        linear: rank of every Linear, None to leave Linears alone.
        overrides: rank (or None) by site name, for example ``{"dnn.linears.1": 32}``.
    """

    embedding: int | None = 2
    linear: int | None = 64
    overrides: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rank("embedding", self.embedding)
        _check_rank("linear", self.linear)
        for name, rank in self.overrides.items():
            _check_rank(f"overrides['{name}']", rank, least=0)

    def choose(self, task: PlanningTask) -> Decision:
        """The kind's rank, or the override."""
        ranks: dict[str, Rank] = {}
        reasons: dict[str, str] = {}
        for site in task.sites:
            rank = self.embedding if site.kind is SiteKind.EMBEDDING else self.linear
            reasons[site.name] = f"rank of every {site.kind} site"
            if rank is None:
                reasons[site.name] = f"the policy leaves {site.kind} sites alone"
            elif rank >= site.width:
                rank, reasons[site.name] = None, f"{site.width} features are no more than rank {rank}"
            ranks[site.name] = rank
        for name, rank in self.overrides.items():
            site = _site_to_override(task, name, rank)
            ranks[site.name] = rank
            reasons[site.name] = "left alone by override" if rank is None else "override"
        return _without_dearer_codes(task, ranks, reasons)


@dataclass(frozen=True)
class Energy(Policy):
    """The smallest rank that keeps a share of every site's energy about its centre.

    Attributes:
        fraction: share in (0, 1], for example 0.99.
    """

    fraction: float = 0.99

    def __post_init__(self) -> None:
        check_share("Energy", self.fraction)

    def choose(self, task: PlanningTask) -> Decision:
        """The smallest sufficient rank per site."""
        ranks: dict[str, Rank] = {}
        reasons = {}
        for site in task.sites:
            basis = task.basis(site.name)
            rank = next((r for r in range(1, site.width) if basis.kept_energy(r) >= self.fraction), site.width)
            ranks[site.name], reasons[site.name] = rank, f"keeps {basis.kept_energy(rank):.2%} of the energy"
        return _without_dearer_codes(task, ranks, reasons)


def _without_dearer_codes(task: PlanningTask, ranks: dict[str, Rank], reasons: dict[str, str]) -> Decision:
    """Leaves every site alone whose code would not save parameters, given all the other ranks."""
    parameters = task.costs.estimate(CostKind.PARAMETERS)
    for name, rank in ranks.items():
        saved = 0.0 if rank is None else parameters.change(ranks, name, None)
        if rank is not None and saved <= 0:
            ranks[name] = None
            reasons[name] = f"past break-even: rank {rank} makes {-saved:,.0f} parameters more, not fewer"
    return Decision(ranks, reasons)


def _site_to_override(task: PlanningTask, name: str, rank: Rank) -> Site:
    site = task.site(name)
    if site is None:
        names = [site.name for site in task.sites]
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {close}?" if close else f"the sites are {names[:10]}{' ...' if len(names) > 10 else ''}"
        raise PolicyError(f"overrides names '{name}', which is no site that can be factored; {hint}")
    if rank is not None and rank > site.width:
        raise PolicyError(f"overrides['{name}'] asks for rank {rank}, the site has only {site.width} features")
    if rank is not None and rank < site.lowest_rank:
        raise PolicyError(f"overrides['{name}'] asks for rank 0: only plain lookups can become a constant row")
    return site


def _check_rank(name: str, rank: object, least: int = 1) -> None:
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < least):
        raise PolicyError(f"{name} must be a rank of at least {least}, or None to leave sites alone, got {rank!r}")


def check_share(name: str, share: object) -> None:
    """Checks a share in (0, 1].

    Raises:
        PolicyError: it is something else.
    """
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
        raise PolicyError(f"{name} takes a share above 0 and up to 1, got {share!r}")
