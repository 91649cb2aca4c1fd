"""Policies: which rank every site gets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

from afm_fx.allocation import Allocation, Frontier
from afm_fx.errors import PolicyError
from afm_fx.situation import Choice, Situation, leave_what_gains_nothing
from passes.sites import Site, SiteKind


class Policy(Protocol):
    """Picks a rank per site.

    Attributes:
        measures: whether it gains from measured logit errors.
        joins_tables: whether tables looked up by the same ids may become one site, where errors are measured.
    """

    measures: ClassVar[bool]
    joins_tables: ClassVar[bool]

    def choose(self, situation: Situation) -> dict[str, Choice]:
        """One choice per factorable site, by name."""
        ...

    def describe(self) -> dict[str, Any]:
        """The policy as JSON, kept in the plan."""
        ...


class _Described:
    """A policy that describes itself by its name and fields."""

    joins_tables: ClassVar[bool] = False
    measures: ClassVar[bool] = True

    def describe(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"policy": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class FullRank(_Described):
    """Every site at its full width: changes nothing but the form. It proves the surgery; it saves nothing."""

    measures: ClassVar[bool] = False

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
    """The ranks that lose least within a number of parameters.

    Where logit errors are measured (``basis="measured"``), the loss is the logits' mean squared error, and tables
    looked up by the same ids share one code; otherwise it is the share of its own energy that each site loses.
    See :class:`afm_fx.allocation.Frontier` for the way to them. A site whose next rank would cost as much as leaving
    it alone is left alone.

    Attributes:
        parameters: share in (0, 1] of the model's parameters that may remain.
    """

    joins_tables: ClassVar[bool] = True

    parameters: float

    def __post_init__(self) -> None:
        _check_fraction("Budget", self.parameters)

    def choose(self, situation: Situation) -> dict[str, Choice]:
        """Ranks within the budget.

        Raises:
            PolicyError: even the smallest ranks exceed it; the message says the smallest reachable.
        """
        limit = int(self.parameters * situation.dense_parameters) - situation.reserve
        frontier = frontier_of(situation)
        cheapest = frontier.cheapest()
        if cheapest.cost > limit:
            dense = situation.dense_parameters
            raise PolicyError(
                f"a budget of {self.parameters:g} of {dense:,} parameters cannot be reached: the smallest reachable is "
                f"{cheapest.cost / dense:.4f} ({cheapest.cost:,} parameters)"
            )
        *_, best = frontier.walk(limit)
        if situation.errors is not None:
            best = frontier.refined(best, limit, situation.errors.together)
        return choices_of(situation, best)


def frontier_of(situation: Situation) -> Frontier:
    """The frontier of losses over parameters."""
    return Frontier(
        situation.sites,
        {site.name: situation.levels(site) for site in situation.sites},
        situation.loss,
        situation.ledger.total,
        negligible=situation.negligible_loss(),
    )


def choices_of(situation: Situation, allocation: Allocation) -> dict[str, Choice]:
    """The choices that an allocation stands for."""
    return {name: Choice(rank, situation.said(name, rank)) for name, rank in allocation.ranks.items()}


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
