"""Policies: which rank every site gets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

from afm_fx.allocation import Allocation, Cost, Frontier
from afm_fx.costs import CostKind
from afm_fx.errors import PolicyError
from afm_fx.fitting import best_within
from afm_fx.situation import Choice, Decision, Situation, leave_what_gains_nothing
from passes.sites import Site, SiteKind


class Policy(Protocol):
    """Picks a rank per site.

    Attributes:
        measures: whether it gains from measured logit errors.
        joins_tables: whether tables looked up by the same ids may become one site, where errors are measured.
    """

    measures: ClassVar[bool]

    @property
    def joins_tables(self) -> bool:
        """See above."""
        ...

    def choose(self, situation: Situation) -> Decision:
        """One choice per factorable site, by name."""
        ...

    def describe(self) -> dict[str, Any]:
        """The policy as JSON, kept in the plan."""
        ...


class _Described:
    """A policy that describes itself by its name and fields."""

    measures: ClassVar[bool] = True

    @property
    def joins_tables(self) -> bool:
        """Not unless the policy says so."""
        return False

    def describe(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"policy": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class FullRank(_Described):
    """Every site at its full width: changes nothing but the form. It proves the surgery; it saves nothing."""

    measures: ClassVar[bool] = False

    def choose(self, situation: Situation) -> Decision:
        """Every site at its width."""
        return Decision({site.name: Choice(site.width, "full rank") for site in situation.sites})


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
            _check_rank(f"overrides['{name}']", rank, least=0)

    def choose(self, situation: Situation) -> Decision:
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
        return Decision(leave_what_gains_nothing(situation, choices))

    def _resolve(self, situation: Situation) -> dict[str, int | None]:
        resolved = {}
        for name, rank in self.overrides.items():
            site = situation.site(name)
            if site is None:
                raise PolicyError(_unknown(name, situation.sites))
            if rank is not None and rank > site.width:
                raise PolicyError(f"overrides['{name}'] asks for rank {rank}, the site has only {site.width} features")
            if rank is not None and rank < site.lowest_rank:
                raise PolicyError(f"overrides['{name}'] asks for rank 0: only plain lookups can become a constant row")
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

    def choose(self, situation: Situation) -> Decision:
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
        return Decision(leave_what_gains_nothing(situation, choices))


@dataclass(frozen=True)
class Budget(_Described):
    """The ranks that lose least within a share of the model's parameters, bytes or multiply-adds: exactly one is given.

    Where logit errors are measured (``basis="measured"``), the loss is the logits' mean squared error; otherwise it is
    the share of its own energy that each site loses. Tables looked up by the same ids then share one code, which saves
    parameters; not so under a budget of multiply-adds, for it saves none and decodes more.
    See :class:`afm_fx.allocation.Frontier` for the way to the ranks. A site whose next rank would cost as much as
    leaving it alone is left alone. Costs are those before packing.

    Attributes:
        parameters: share in (0, 1] of the model's parameters that may remain.
        bytes: share in (0, 1] of the bytes of the model's state (in its number formats, buffers included).
        flops: share in (0, 1] of the multiply-adds for one row (:mod:`passes.multiply_adds`).
    """

    parameters: float | None = None
    bytes: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in CostKind if getattr(self, kind) is not None]
        if len(given) != 1:
            raise PolicyError(f"Budget takes exactly one of parameters, bytes and flops, got {given or 'none'}")
        _check_fraction("Budget", self.share)

    @property
    def kind(self) -> CostKind:
        """What the budget is of."""
        return next(kind for kind in CostKind if getattr(self, kind) is not None)

    @property
    def share(self) -> float:
        """The share that may remain."""
        share: float = getattr(self, self.kind)
        return share

    @property
    def joins_tables(self) -> bool:
        """Where that saves something."""
        return self.flops is None

    def describe(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"policy": "Budget", self.kind.value: self.share}

    def choose(self, situation: Situation) -> Decision:
        """Ranks within the budget.

        Raises:
            PolicyError: even the smallest ranks exceed it; the message says the smallest reachable.
        """
        if self.kind is CostKind.PARAMETERS:
            limit = int(self.share * situation.dense_parameters) - situation.reserve
            frontier = frontier_of(situation)
            cheapest = frontier.barest()
            if cheapest.cost > limit:
                raise self._unreachable(cheapest.cost, situation.dense_parameters)
            *_, best = frontier.walk(limit)
            return Decision(choices_of(situation, refined(situation, frontier, best, limit)))
        if situation.costs is None:
            raise PolicyError(f"a budget of {self.kind} needs a program to count them in")
        costs, kind = situation.costs, self.kind
        dense, frontier = costs.dense(kind), frontier_of(situation, kind)
        found = best_within(frontier, self.share * dense, lambda ranks: costs.exact(kind, ranks))
        if found is None:
            raise self._unreachable(costs.exact(kind, frontier.barest().ranks), dense)
        better = refined(situation, frontier, found, found.cost)
        if costs.exact(kind, better.ranks) > self.share * dense:
            better = found
        return Decision(choices_of(situation, better), final=True)

    def _unreachable(self, smallest: float, dense: float) -> PolicyError:
        named = "multiply-adds" if self.kind is CostKind.FLOPS else self.kind.value
        return PolicyError(
            f"a budget of {self.share:g} of {dense:,.0f} {named} cannot be reached: the smallest reachable is "
            f"{smallest / dense:.4f} ({smallest:,.0f} {named})"
        )


def frontier_of(situation: Situation, kind: CostKind = CostKind.PARAMETERS) -> Frontier:
    """The frontier of losses over a cost."""
    cost: Cost = situation.ledger.total
    if kind is not CostKind.PARAMETERS and situation.costs is not None:
        cost = situation.costs.estimate(kind)
    return Frontier(
        situation.sites,
        {site.name: situation.levels(site) for site in situation.sites},
        situation.loss,
        cost,
        negligible=situation.negligible_loss(),
    )


def refined(situation: Situation, frontier: Frontier, state: Allocation, limit: float) -> Allocation:
    """An allocation corrected by errors of the whole program, where they are measured."""
    return state if situation.errors is None else frontier.refined(state, limit, situation.errors.together)


def choices_of(situation: Situation, allocation: Allocation) -> dict[str, Choice]:
    """The choices that an allocation stands for."""
    return {name: Choice(rank, situation.said(name, rank)) for name, rank in allocation.ranks.items()}


def _check_rank(name: str, rank: object, least: int = 1) -> None:
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < least):
        raise PolicyError(f"{name} must be a rank of at least {least}, or None to leave sites alone, got {rank!r}")


def _check_fraction(name: str, fraction: object) -> None:
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise PolicyError(f"{name} takes a share above 0 and up to 1, got {fraction!r}")


def _unknown(name: str, sites: tuple[Site, ...]) -> str:
    names = [site.name for site in sites]
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {close}?" if close else f"the sites are {names[:10]}{' ...' if len(names) > 10 else ''}"
    return f"overrides names '{name}', which is no site that can be factored; {hint}"
