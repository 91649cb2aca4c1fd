"""Policies: which rank every site gets."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from afm_fx.errors import PolicyError
from afm_fx.situation import Choice, Situation, leave_what_gains_nothing
from passes.sites import Site, SiteKind

NEGLIGIBLE_ENERGY = 1e-12
"""Share of a site's energy that is rounding, not worth a rank."""


class Policy(Protocol):
    """Picks a rank per site."""

    def choose(self, situation: Situation) -> dict[str, Choice]:
        """One choice per factorable site, by name."""
        ...

    def describe(self) -> dict[str, Any]:
        """The policy as JSON, kept in the plan."""
        ...


class _Described:
    """A policy that describes itself by its name and fields."""

    def describe(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"policy": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class FullRank(_Described):
    """Every site at its full width: changes nothing but the form. It proves the surgery; it saves nothing."""

    def choose(self, situation: Situation) -> dict[str, Choice]:
        """Every site at its width."""
        return {site.name: Choice(site.width, "full rank") for site in situation.sites}


@dataclass(frozen=True)
class Fixed(_Described):
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
            _check_rank(f"overrides['{name}']", rank)

    def choose(self, situation: Situation) -> dict[str, Choice]:
        """The kind's rank, or the override."""
        overrides = self._resolve(situation)
        choices = {}
        for site in situation.sites:
            if site.name in overrides:
                rank = overrides[site.name]
                choices[site.name] = Choice(rank, "override" if rank is not None else "left alone by override")
                continue
            rank = self.embedding if site.kind is SiteKind.EMBEDDING else self.linear
            if rank is None:
                choices[site.name] = Choice(None, f"the policy leaves {site.kind} sites alone")
            elif rank >= site.width:
                choices[site.name] = Choice(None, f"{site.width} features are no more than rank {rank}")
            else:
                choices[site.name] = Choice(rank, f"rank of every {site.kind} site")
        return leave_what_gains_nothing(situation, choices)

    def _resolve(self, situation: Situation) -> dict[str, int | None]:
        resolved = {}
        for name, rank in self.overrides.items():
            site = situation.site(name)
            if site is None:
                raise PolicyError(_unknown(name, situation.sites))
            if rank is not None and rank > site.width:
                raise PolicyError(f"overrides['{name}'] asks for rank {rank}, the site has only {site.width} features")
            resolved[site.name] = rank
        return resolved


@dataclass(frozen=True)
class Energy(_Described):
    """The smallest rank that keeps a share of every site's energy about its centre.

    Attributes:
        fraction: share in (0, 1], for example 0.99.
    """

    fraction: float = 0.99

    def __post_init__(self) -> None:
        _check_fraction("Energy", self.fraction)

    def choose(self, situation: Situation) -> dict[str, Choice]:
        """The smallest sufficient rank per site."""
        choices = {}
        for site in situation.sites:
            basis = situation.bases[site.name]
            rank = next(
                rank
                for rank in range(1, site.width + 1)
                if rank == site.width or basis.kept_energy(rank) >= self.fraction
            )
            choices[site.name] = Choice(rank, f"keeps {basis.kept_energy(rank):.2%} of the energy")
        return leave_what_gains_nothing(situation, choices)


@dataclass(frozen=True)
class Budget(_Described):
    """The ranks that keep the most energy within a number of parameters.

    Greedy: every site starts at its cheapest; then, again and again, the site whose next rank keeps the largest share
    of its energy per added parameter gets it, until nothing fits any more. A site whose next rank would cost as much
    as leaving it alone is left alone.

    Attributes:
        parameters: share in (0, 1] of the model's parameters that may remain.
    """

    parameters: float

    def __post_init__(self) -> None:
        _check_fraction("Budget", self.parameters)

    def choose(self, situation: Situation) -> dict[str, Choice]:
        """Ranks within the budget.

        Raises:
            PolicyError: even the smallest ranks exceed it; the message says the smallest reachable.
        """
        return _Allocation(situation, self.parameters).run()


class _Allocation:
    """One greedy allocation."""

    def __init__(self, situation: Situation, fraction: float) -> None:
        self._situation = situation
        self._limit = int(fraction * situation.dense_parameters) - situation.reserve
        self._fraction = fraction
        self._ranks: dict[str, int | None] = {site.name: 1 for site in situation.sites}

    def run(self) -> dict[str, Choice]:
        total = self._cheapest()
        if total > self._limit:
            dense = self._situation.dense_parameters
            raise PolicyError(
                f"a budget of {self._fraction:g} of {dense:,} parameters cannot be reached: the smallest reachable is "
                f"{total / dense:.4f} ({total:,} parameters)"
            )
        self._spend(total)
        return {name: Choice(rank, self._reason(name, rank)) for name, rank in self._ranks.items()}

    def _total(self, **changed: int | None) -> int:
        return self._situation.ledger.total({**self._ranks, **changed} if changed else self._ranks)

    def _cheapest(self) -> int:
        """Leaves alone what rank 1 makes larger."""
        total = self._total()
        for name in self._ranks:
            left = self._total(**{name: None})
            if left <= total:
                self._ranks[name], total = None, left
        return total

    def _spend(self, total: int) -> None:
        heap = [step for site in self._situation.sites if (step := self._step(site, total)) is not None]
        heapq.heapify(heap)
        while heap:
            _, _, site, stale_total = heapq.heappop(heap)
            step = self._step(site, total)
            if step is None:
                continue
            if stale_total != total and heap and step[0] > heap[0][0]:
                heapq.heappush(heap, step)
                continue
            rank, cost = self._next(site, total)
            if total + cost > self._limit:
                continue
            self._ranks[site.name], total = rank, total + cost
            following = self._step(site, total)
            if following is not None:
                heapq.heappush(heap, following)

    def _next(self, site: Site, total: int) -> tuple[int | None, int]:
        """The next level of a site, and its price in parameters."""
        rank = (self._ranks[site.name] or 0) + 1
        left = self._total(**{site.name: None})
        factored = self._total(**{site.name: rank}) if rank < site.width else left
        return (rank, factored - total) if factored < left else (None, left - total)

    def _step(self, site: Site, total: int) -> _Step | None:
        """The heap entry of a site's next level, None where it is at its last one."""
        current = self._ranks[site.name]
        if current is None:
            return None
        basis = self._situation.bases[site.name]
        if 1.0 - basis.kept_energy(current) <= NEGLIGIBLE_ENERGY:
            return None
        rank, cost = self._next(site, total)
        gained = (1.0 if rank is None else basis.kept_energy(rank)) - basis.kept_energy(current)
        order = self._situation.sites.index(site)
        return _Step((-gained / max(cost, 1), order, site, total))

    def _reason(self, name: str, rank: int | None) -> str:
        if rank is None:
            return "leaving it alone costs no more than its code would"
        return f"keeps {self._situation.bases[name].kept_energy(rank):.2%} of the energy"


class _Step(tuple[float, int, Site, int]):
    """(minus energy share per parameter, order, site, total it was computed at), compared by the first two."""

    __slots__ = ()

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        return self[:2] < other[:2]


def _check_rank(name: str, rank: object) -> None:
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise PolicyError(f"{name} must be a rank of at least 1, or None to leave sites alone, got {rank!r}")


def _check_fraction(name: str, fraction: object) -> None:
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise PolicyError(f"{name} takes a share above 0 and up to 1, got {fraction!r}")


def _unknown(name: str, sites: tuple[Site, ...]) -> str:
    names = [site.name for site in sites]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {close}?" if close else f"the sites are {names[:10]}{' ...' if len(names) > 10 else ''}"
    return f"overrides names '{name}', which is no site that can be factored; {hint}"
