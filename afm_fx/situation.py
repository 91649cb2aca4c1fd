"""What a policy decides on: the sites, their bases and what every choice of ranks costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from afm_fx.basis import Basis
from afm_fx.costs import Costs
from afm_fx.evidence import Evidence
from afm_fx.plan import Plan
from afm_fx.program import Program
from afm_fx.site_errors import SiteErrors
from passes.parameter_ledger import ParameterLedger
from passes.sites import Site, site_name

NEGLIGIBLE_ENERGY = 1e-12
"""Share of a site's energy that is rounding."""

NEGLIGIBLE_LOGIT_ERROR = 1e-9
"""Share of the logits' variance that is rounding in float32."""

FINE_WIDTH = 64
COARSE_RANKS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
)
"""Ranks tried for sites wider than that: fine where a rank weighs much, multiples of the vector width further on."""


@dataclass(frozen=True)
class Choice:
    """A policy's word on one site.

    Attributes:
        rank: the code width, None to leave the site as it is.
        reason: why, one sentence.
    """

    rank: int | None
    reason: str


@dataclass(frozen=True)
class Decision:
    """What a policy chose, and what it measured for that.

    Attributes:
        choices: one per site that may be factored, by name.
        evidence: what was measured on programs made on the way.
        final: the policy looked at the program that the choices make, and is not to be asked again with more reserve.
    """

    choices: Mapping[str, Choice]
    evidence: tuple[Evidence, ...] = ()
    final: bool = False


@dataclass(frozen=True)
class Situation:
    """The sites that may be factored and what is known about them.

    Attributes:
        sites: factorable sites in graph order.
        bases: by site name.
        ledger: the parameter count as a function of the ranks.
        reserve: parameters to stay below a budget by.
        errors: measured logit errors, None where nothing is measured.
        renamed: names of sites by their names in the original, for Linears that units were dropped from.
        dense_parameters: parameters of the program when every site is left alone.
        costs: bytes and multiply-adds as functions of the ranks, None where nobody can count them.
        program: the original, None where nobody can measure it.
        assemble: makes the plan of some choices, for policies that measure the program that it makes.
    """

    sites: tuple[Site, ...]
    bases: Mapping[str, Basis]
    ledger: ParameterLedger
    dense_parameters: int
    reserve: int = 0
    errors: SiteErrors | None = None
    costs: Costs | None = None
    program: Program | None = None
    assemble: Callable[[Mapping[str, Choice]], Plan] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def loss(self, name: str, rank: int) -> float:
        """What a site loses at a rank: mean squared logit error, or its share of lost energy where none is measured."""
        if self.errors is None:
            return 1.0 - self.bases[name].kept_energy(rank)
        return self.errors.best(name, rank)[1]

    def negligible_loss(self) -> float:
        """Losses up to this are rounding, not worth a rank."""
        if self.errors is None:
            return NEGLIGIBLE_ENERGY
        return NEGLIGIBLE_LOGIT_ERROR * self.errors.simulation.variance

    def levels(self, site: Site) -> list[int]:
        """The ranks to consider for a site: all of them, or of a wide one whose errors are measured, some.

        Rank 0, a constant row, is considered only where its error is measured.
        """
        if self.errors is None:
            return list(range(1, site.width + 1))
        if site.width <= FINE_WIDTH:
            return list(range(site.lowest_rank, site.width + 1))
        return [rank for rank in (0, *COARSE_RANKS) if site.lowest_rank <= rank < site.width]

    def said(self, name: str, rank: int | None) -> str:
        """Why a site has a rank."""
        if rank is None:
            return "leaving it alone costs no more than its code would"
        if rank == 0:
            return f"one constant row stands for all, at a logit error of {self.loss(name, rank) ** 0.5:.2g}"
        if self.errors is None:
            return f"keeps {self.bases[name].kept_energy(rank):.2%} of the energy"
        return f"a logit error of {self.errors.best(name, rank)[1] ** 0.5:.2g}"

    def site(self, name: str) -> Site | None:
        """The site of a name; the weight's full name is understood too, and the name in the original."""
        renamed = self.renamed.get(site_name(name))
        return next((site for site in self.sites if name in (site.name, site.parameter) or renamed == site.name), None)


def leave_what_gains_nothing(situation: Situation, choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Leaves every site alone whose code would not save parameters, given all the other choices."""
    result = dict(choices)
    ranks = {name: choice.rank for name, choice in result.items()}
    for site in situation.sites:
        rank = ranks.get(site.name)
        if rank is None:
            continue
        factored = situation.ledger.total(ranks)
        left = situation.ledger.total({**ranks, site.name: None})
        if factored >= left:
            ranks[site.name] = None
            reason = f"past break-even: rank {rank} makes {factored - left:,} parameters more, not fewer"
            result[site.name] = Choice(None, reason)
    return result
