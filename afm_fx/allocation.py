"""Ranks for all sites at once: the most loss avoided for every unit of cost.

Every site starts at its cheapest level. Then, again and again, the site whose next level avoids the most loss per added
cost gets it; a level may skip others, so that a rank that helps only together with the next one does not stop the way
(the lower convex hull of loss over cost). The states that are passed are the *frontier*: each is the best known for its
cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from passes.sites import Site

Rank = int | None
"""A site's level: its rank, or None where it is left alone."""

Ranks = Mapping[str, Rank]
Loss = Callable[[str, int], float]
"""What a site adds to the loss at a rank; left alone it adds nothing."""

Cost = Callable[[Ranks], float]
"""What a program costs at given ranks."""

LOOK_AHEAD = 4
"""So many of a site's next levels are weighed against one another."""

WORTHWHILE = 0.99
"""An exchange has to bring the measured loss below this share of what it was."""

TINY = 1e-12
"""Stands for the price of a step that costs nothing."""


@dataclass(frozen=True)
class Allocation:
    """Ranks, and what they cost and lose.

    Attributes:
        ranks: by site name; None where a site is left alone.
        cost: of the program.
        loss: the sum of the sites' losses.
    """

    ranks: Ranks
    cost: float
    loss: float


class Frontier:
    """Allocations from the cheapest to the one that loses nothing.

    Args:
        sites: that may be factored.
        levels: the ranks to consider for every site, ascending.
        loss: see :data:`Loss`.
        cost: see :data:`Cost`.
        negligible: losses up to this are as good as none.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        levels: Mapping[str, Sequence[int]],
        loss: Loss,
        cost: Cost,
        *,
        negligible: float = 0.0,
    ) -> None:
        self._names = [site.name for site in sites]
        self._levels, self._loss, self._cost, self._negligible = levels, loss, cost, negligible

    def cheapest(self) -> Allocation:
        """Every site at its lowest rank with a code (a constant row where that loses nothing), or left alone where that
        costs no more.
        """
        return self._lowest(least=1)

    def barest(self) -> Allocation:
        """The same, with constant rows (rank 0) for the tables that may have them: the least that can be reached."""
        return min(self._lowest(least=0), self.cheapest(), key=lambda allocation: allocation.cost)

    def _lowest(self, least: int) -> Allocation:
        ranks: dict[str, Rank] = {
            name: next(
                (level for level in self._levels[name] if level >= least or self._is_negligible(name, level)), None
            )
            for name in self._names
        }
        total = self._cost(ranks)
        for name in self._names:
            left = self._cost({**ranks, name: None})
            if left <= total:
                ranks[name], total = None, left
        return self._allocation(ranks, total)

    def within(self, limits: Sequence[float]) -> list[Allocation]:
        """Where :meth:`walk` ends for each of several limits, for the work of one walk: they share its beginning.

        Args:
            limits: ascending, none below the cost of the cheapest.
        """
        forks: list[Allocation] = []
        waiting = list(limits)
        last = None
        for state in self.walk():
            while waiting and last is not None and state.cost > waiting[0]:
                forks.append(last)
                waiting.pop(0)
            last = state
            if not waiting:
                break
        forks += [last] * len(waiting) if last is not None else []
        return [list(self.walk(limit, fork))[-1] for limit, fork in zip(limits, forks, strict=True)]

    def walk(self, limit: float | None = None, start: Allocation | None = None) -> Iterator[Allocation]:
        """The frontier from its cheap end; with a limit, no allocation costs more, and what still fits is taken.

        It begins with a code for every site, and with constant rows only where a limit leaves no room for codes: what
        reads nothing but constants costs next to nothing, and a step away from there says little about its worth.
        Single constant rows come by exchange (:meth:`refined`).

        Costs of sites depend on one another a little (a Linear on codes has as many columns as they have), so the
        order in which sites wait is that of the costs when they were last looked at; a step is taken at its cost now.

        Args:
            limit: of the cost.
            start: an allocation that an earlier walk passed, to go on from.
        """
        state = start or self.cheapest()
        if limit is not None and state.cost > limit:
            state = self.barest()
        yield state
        waiting = [step for name in self._names if (step := self._step(name, state, limit)) is not None]
        heapq.heapify(waiting)
        while waiting:
            stale = heapq.heappop(waiting)
            step = self._step(stale.name, state, limit)
            if step is None:
                continue
            if step.base != stale.base and waiting and step > waiting[0]:
                heapq.heappush(waiting, step)
                continue
            state = self._allocation({**state.ranks, step.name: step.rank}, step.cost)
            yield state
            following = self._step(step.name, state, limit)
            if following is not None:
                heapq.heappush(waiting, following)

    def refined(
        self, state: Allocation, limit: float, measured: Callable[[Ranks], float], *, rounds: int = 4, tries: int = 6
    ) -> Allocation:
        """An allocation with ranks moved from one site to another, where the program as a whole errs less for it.

        The frontier adds the sites' own losses up. Here exchanges that promise most by those are measured together
        with everything else that is factored, and the best one is taken, until none helps.

        Args:
            state: where to start.
            limit: no allocation costs more.
            measured: the loss of the whole program at given ranks.
            rounds: take so many exchanges at most.
            tries: measure so many a round.
        """
        best = measured(state.ranks)
        for _ in range(rounds):
            found = [
                (measured(each.ranks), place, each) for place, each in enumerate(self._exchanges(state, limit)[:tries])
            ]
            if not found or min(found)[0] >= best * WORTHWHILE:
                return state
            best, _, state = min(found)
        return state

    def _exchanges(self, state: Allocation, limit: float) -> list[Allocation]:
        """The allocations with one site a level up and another a level down, the most promising first."""
        up = [(name, rank) for name in self._names for rank in self._neighbours(name, state.ranks[name])[1]]
        down = [(name, rank) for name in self._names for rank in self._neighbours(name, state.ranks[name])[0]]
        changes = [{**state.ranks, more: high, less: low} for more, high in up for less, low in down if more != less]
        allocations = [self._allocation(ranks, self._cost(ranks)) for ranks in changes]
        return sorted((each for each in allocations if each.cost <= limit), key=lambda each: each.loss)

    def _neighbours(self, name: str, rank: Rank) -> tuple[list[int], list[int]]:
        """The levels next below and next above a rank."""
        if rank is None:
            return [], []
        levels = list(self._levels[name])
        return [level for level in levels if level < rank][-1:], [level for level in levels if level > rank][:1]

    def _allocation(self, ranks: Ranks, cost: float) -> Allocation:
        return Allocation(ranks, cost, sum(self._of(name, rank) for name, rank in ranks.items()))

    def _is_negligible(self, name: str, rank: int) -> bool:
        return self._of(name, rank) <= self._negligible

    def _of(self, name: str, rank: Rank) -> float:
        return 0.0 if rank is None else self._loss(name, rank)

    def _step(self, name: str, state: Allocation, limit: float | None) -> _Step | None:
        """The best of a site's next levels that fit, None where there is none."""
        current = state.ranks[name]
        if current is None or self._of(name, current) <= self._negligible:
            return None
        steps: list[tuple[Rank, float, float]] = []
        left = self._cost({**state.ranks, name: None})
        for rank in [level for level in self._levels[name] if level > current][:LOOK_AHEAD]:
            cost = self._cost({**state.ranks, name: rank})
            if cost >= left:
                break
            steps.append((rank, cost, self._of(name, current) - self._of(name, rank)))
        steps.append((None, left, self._of(name, current)))
        order = self._names.index(name)
        fitting = [
            _Step(-gained / max(cost - state.cost, TINY), order, name, rank, cost, state.cost)
            for rank, cost, gained in steps
            if gained > 0 and (limit is None or cost <= limit)
        ]
        return min(fitting, default=None)


@dataclass(frozen=True, order=True)
class _Step:
    """A site's next level.

    Attributes:
        priority: minus the loss avoided per cost.
        order: place of the site, to decide between equals.
        name: of the site.
        rank: the level.
        cost: of the program afterwards.
        base: the cost of the program when the step was computed.
    """

    priority: float
    order: int
    name: str = field(compare=False)
    rank: Rank = field(compare=False)
    cost: float = field(compare=False)
    base: float = field(compare=False)
