"""Ranks for all sites at once: the most loss avoided for every unit of cost.

Every site starts at its cheapest level. Then, again and again, the site whose next level avoids the most loss per added
cost gets it; a level may skip others, so that a rank that helps only together with the next one does not stop the way
(the lower convex hull of loss over cost). The states that are passed are the *frontier*: each is the best known for its
cost.

Costs are estimates; what a limit really allows is known for programs that are made. So the frontier is walked again
with what the estimate was off by where the walk ended, until nothing changes, and nothing that exceeds the limit by
the exact count is ever taken.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from afm_fx.planning.cost import RankCost, Ranks

Rank = int | None
"""A site's level: its rank, or None where it is left alone."""

Loss = Callable[[str, int], float]
"""What a site adds to the loss at a rank; left alone it adds nothing."""

Measured = Callable[[Ranks], float]
"""What is measured on the whole program at given ranks: its loss, or what it costs."""


LOOK_AHEAD = 4
"""So many of a site's next levels are weighed against one another."""

WORTHWHILE = 0.99
"""An exchange has to bring the measured loss below this share of what it was."""

ROUNDS, TRIES = 4, 6
"""So many exchanges are made at most, and so many are measured for each."""

WALKS = 4
"""Walks with a corrected estimate; the third seldom differs from the second."""

CLOSE = 0.001
"""Share of the limit that a correction may still change by."""

TINY = 1e-12
"""Stands for the price of a step that costs nothing."""


@dataclass(frozen=True)
class Allocation:
    """Ranks, and what they cost and lose.

    Attributes:
        ranks: by site name; None where a site is left alone.
    """

    ranks: Ranks
    cost: float
    loss: float


class Frontier:
    """Allocations from the cheapest to the one that loses nothing.

    Args:
        levels: the ranks to consider for every site that may be factored, ascending, by name.
        loss: see :data:`Loss`.
        negligible: losses up to this are as good as none.
        measured: the loss of the whole program, None where the sites' losses only add up.
    """

    def __init__(
        self,
        levels: Mapping[str, Sequence[int]],
        loss: Loss,
        cost: RankCost,
        *,
        negligible: float = 0.0,
        measured: Measured | None = None,
    ) -> None:
        self._levels, self._names = levels, list(levels)
        self._loss, self._cost, self._negligible, self._measured = loss, cost, negligible, measured

    def cheapest(self) -> Allocation:
        """Every site at its lowest rank with a code (a constant row where that loses nothing), or left alone where that
        costs no more.
        """
        return self._lowest(least=1)

    def smallest(self) -> Allocation:
        """The same, with constant rows (rank 0) for the tables that may have them: the least that can be reached."""
        return min(self._lowest(least=0), self.cheapest(), key=lambda allocation: allocation.cost)

    def _lowest(self, least: int) -> Allocation:
        ranks: dict[str, Rank] = {
            name: next((level for level in levels if level >= least or self._is_negligible(name, level)), None)
            for name, levels in self._levels.items()
        }
        total = self._cost(ranks)
        for name in self._names:
            more = self._cost.change(ranks, name, None)
            if more <= 0:
                ranks[name], total = None, total + more
        return self._allocation(ranks, total)

    def within(self, limit: float, exact: Measured) -> Allocation | None:
        """The allocation of the smallest loss whose exact cost is within a limit; None where the cheapest is not.

        Where losses are measured on the whole program, it is :meth:`refined`.

        Args:
            exact: the cost of the program made; takes long.
        """
        fitting: list[tuple[Allocation, float]] = []
        correction = 0.0
        states: list[Allocation] = []
        for _ in range(WALKS):
            states = list(self.walk(limit - correction))
            difference = exact(states[-1].ranks) - states[-1].cost
            if states[-1].cost + difference <= limit:
                fitting.append((states[-1], difference))
            if abs(difference - correction) <= CLOSE * limit:
                break
            correction = difference
        if not fitting:
            # costs rise along a walk; its start may have constant rows, and then cost more than codes for all
            place = bisect_right(states, limit, key=lambda state: exact(state.ranks))
            last = states[place - 1] if place else self.cheapest()
            if exact(last.ranks) > limit:
                return None
            fitting.append((last, exact(last.ranks) - last.cost))
        best, difference = min(fitting, key=lambda each: each[0].loss)
        better = self.refined(best, limit - difference)
        return better if exact(better.ranks) <= limit else best

    def walk(self, limit: float | None = None) -> Iterator[Allocation]:
        """The frontier from its cheap end; with a limit, no allocation costs more, and what still fits is taken.

        It begins with a code for every site, and with constant rows only where a limit leaves no room for codes: what
        reads nothing but constants costs next to nothing, and a step away from there says little about its worth.
        Single constant rows come by exchange (:meth:`refined`).

        Costs of sites depend on one another a little (a Linear on codes has as many columns as they have), so the
        order in which sites wait is that of the costs when they were last looked at; a step is taken at its cost now.
        """
        state = self.cheapest()
        if limit is not None and state.cost > limit:
            state = self.smallest()
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

    def refined(self, state: Allocation, limit: float) -> Allocation:
        """An allocation with ranks moved from one site to another, where the program as a whole errs less for it.

        The frontier adds the sites' own losses up. Here exchanges that promise most by those are measured together
        with everything else that is factored, and the best one is taken, until none helps.

        Args:
            limit: no allocation costs more, by the estimate.
        """
        if self._measured is None:
            return state
        best = self._measured(state.ranks)
        for _ in range(ROUNDS):
            tried = [
                (self._measured(exchange.ranks), place, exchange)
                for place, exchange in enumerate(self._exchanges(state, limit)[:TRIES])
            ]
            if not tried or min(tried)[0] >= best * WORTHWHILE:
                return state
            best, _, state = min(tried)
        return state

    def _exchanges(self, state: Allocation, limit: float) -> list[Allocation]:
        """The allocations with one site a level up and another a level down, the most promising first."""
        allocations = []
        for more in self._names:
            for high in self._neighbours(more, state.ranks[more])[1]:
                raised = {**state.ranks, more: high}
                cost = state.cost + self._cost.change(state.ranks, more, high)
                allocations += [
                    self._allocation({**raised, less: low}, cost + saved)
                    for less in self._names
                    for low in self._neighbours(less, state.ranks[less])[0]
                    if less != more and cost + (saved := self._cost.change(raised, less, low)) <= limit
                ]
        return sorted(allocations, key=lambda allocation: allocation.loss)

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
        left = state.cost + self._cost.change(state.ranks, name, None)
        for rank in [level for level in self._levels[name] if level > current][:LOOK_AHEAD]:
            cost = state.cost + self._cost.change(state.ranks, name, rank)
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
        order: place of the site, to decide between equals.
        base: the cost of the program when the step was computed.
    """

    priority: float
    order: int
    name: str = field(compare=False)
    rank: Rank = field(compare=False)
    cost: float = field(compare=False)
    base: float = field(compare=False)
