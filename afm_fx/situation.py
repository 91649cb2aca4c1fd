"""What a policy decides on: the sites, their bases and what every choice of ranks costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from afm_fx.basis import Basis
from passes.parameter_ledger import ParameterLedger
from passes.sites import Site


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
class Situation:
    """The sites that may be factored and what is known about them.

    Attributes:
        sites: factorable sites in graph order.
        bases: by site name.
        ledger: the parameter count as a function of the ranks.
        reserve: parameters to stay below a budget by.
    """

    sites: tuple[Site, ...]
    bases: Mapping[str, Basis]
    ledger: ParameterLedger
    reserve: int = 0

    @property
    def dense_parameters(self) -> int:
        """Parameters of the program when every site is left alone."""
        return self.ledger.total({})

    def site(self, name: str) -> Site | None:
        """The site of a name; the weight's full name is understood too."""
        return next((site for site in self.sites if name in (site.name, site.parameter)), None)


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
