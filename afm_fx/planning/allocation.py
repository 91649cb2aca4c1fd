"""Ranks for all sites at once: the most loss avoided for every unit of cost.

Every site starts at its cheapest level. Then, again and again, the site whose next level avoids the most loss per added
cost gets it; a level may skip others, so that a rank that helps only together with the next one does not stop the way
(the lower convex hull of loss over cost). The states that are passed are the *frontier*: each is the best for its cost.

A limit falls between two of them, and the rate of the step that exceeds it is the price of a unit of cost. With that
price, ``loss + price * (cost - limit)`` is the Lagrangian: no allocation within the limit loses less than its minimum,
and one with some other levels loses more by what each of them adds to it. So few levels can be in an allocation better
than the best one known. They are combined site by site, with all pairs of cost and loss that are not dominated (dynamic
programming for the multiple-choice knapsack; Pisinger 1995). Where costs add up, that ends within a hundredth of the
optimum, as long as ``STATES`` pairs are enough and no loss falls only beyond ``LOOK_AHEAD`` levels.

Costs are estimates; what a limit really allows is known for programs that are made. So the frontier is walked again
with what the estimate was off by where the walk ended, until nothing changes, and nothing that exceeds the limit by
the exact count is ever taken.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from afm_fx.planning.cost import RankCost, Ranks

Rank = int | None
"""A site's level: its rank, or None where it is left alone."""

Levels = Mapping[str, Sequence[int]]
"""Ranks to consider by site, ascending."""

Loss = Callable[[str, int], float]
"""What a site adds to the loss at a rank; left alone it adds nothing."""

Measured = Callable[[Ranks], float]
"""What is measured on the whole program at given ranks: its loss, or what it costs."""


LOOK_AHEAD = 8
"""So many of a site's next levels are weighed against one another."""

STATES = 32
"""So many allocations are kept at most while sites are combined."""

PRICES = (1.0, 0.5)
"""Shares of the price to combine at. Where costs depend on one another, some combinations are found at a lower one."""

NEAR = 0.99
"""An allocation whose loss is proven to be within this share of the optimum is good enough."""

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
        levels: Levels,
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
        for _ in range(WALKS):
            for found in self._better(limit - correction):
                difference = exact(found.ranks) - found.cost
                if found.cost + difference <= limit:
                    fitting.append((found, difference))
            if abs(difference - correction) <= CLOSE * limit:
                break
            correction = difference
        if not fitting:
            # costs rise along a walk; its start may have constant rows, and then cost more than codes for all
            states = list(self.walk(limit - correction))
            place = bisect_right(states, limit, key=lambda state: exact(state.ranks))
            last = states[place - 1] if place else self.cheapest()
            if exact(last.ranks) > limit:
                return None
            fitting.append((last, exact(last.ranks) - last.cost))
        best, difference = min(fitting, key=lambda each: self._whole(each[0]))
        better = self.refined(best, limit - difference)
        return better if exact(better.ranks) <= limit else best

    def walk(self, limit: float | None = None) -> Iterator[Allocation]:
        """The frontier from its cheap end; with a limit, no allocation costs more, and what still fits is taken.

        It begins with a code for every site, and with constant rows only where a limit leaves no room for codes: what
        reads nothing but constants costs next to nothing, and a step away from there says little about its worth.

        Costs of sites depend on one another a little (a Linear on codes has as many columns as they have), so the
        order in which sites wait is that of the costs when they were last looked at; a step is taken at its cost now.
        """
        state = self._start(limit)
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

    def best(self, limit: float) -> Allocation:
        """The allocation of the smallest sum of losses within a limit, by the estimate; the smallest where none is."""
        *_, best = self._better(limit)
        return best

    def _better(self, limit: float) -> Iterator[Allocation]:
        """Ever better allocations within a limit: the end of the walk, and then combinations of levels."""
        first, *_, best = (self._start(limit), *self.walk(limit))
        yield best
        beyond = [step for name in self._names if (step := self._step(name, best)) and step.cost > limit]
        if best.cost > limit or not beyond:
            return
        levels = {name: self._useful(name, first, best) for name in self._names}
        before = None
        while best is not before:
            before = best
            for price in (-min(beyond).priority * share for share in PRICES):
                lowest = self._relaxed(best, levels, price)
                if lowest.loss + price * (lowest.cost - limit) >= best.loss * NEAR:
                    return
                better = self._combined(lowest, best, levels, price, limit)
                if better.loss < best.loss:
                    yield (best := better)

    def _start(self, limit: float | None) -> Allocation:
        state = self.cheapest()
        return state if limit is None or state.cost <= limit else self.smallest()

    def _useful(self, name: str, first: Allocation, last: Allocation) -> Sequence[int]:
        """The levels to combine of a site; of one that a walk leaves alone, those that cost less at its start."""
        if last.ranks[name] is not None:
            return self._levels[name]
        left = self._cost.change(first.ranks, name, None)
        return [rank for rank in self._levels[name] if self._cost.change(first.ranks, name, rank) < left]

    def _relaxed(self, state: Allocation, levels: Levels, price: float) -> Allocation:
        """The minimum of the Lagrangian, whatever it costs."""
        for name in self._names:
            above = self._above(state, name, levels[name], price)
            state = self._moved(state, name, min(above, key=above.__getitem__))
        return state

    def _combined(self, lowest: Allocation, best: Allocation, levels: Levels, price: float, limit: float) -> Allocation:
        """The best allocation within a limit that differs from the Lagrangian's minimum in some levels.

        Args:
            best: the best one known.
        """

        def bound(state: Allocation) -> float:
            return state.loss + price * (state.cost - limit)

        states = [lowest]
        for name in self._names:
            above = self._above(lowest, name, levels[name], price, best.loss * NEAR - bound(lowest))
            moved = [
                self._moved(state, name, rank)
                for state in states
                for rank, added in above.items()
                if bound(state) + added < best.loss * NEAR
            ]
            best = min((state for state in (best, *moved) if state.cost <= limit), key=lambda state: state.loss)
            states = heapq.nsmallest(STATES, _undominated(moved), key=bound)
        return self._allocation(best.ranks, best.cost)

    def _above(
        self, state: Allocation, name: str, levels: Sequence[int], price: float, room: float = 0.0
    ) -> dict[Rank, float]:
        """What a site's levels add to the Lagrangian, those that may add no more than ``room``."""
        current = state.ranks[name]
        lost, end = self._of(name, current), None if current is None else bisect_right(levels, current) + LOOK_AHEAD
        added: dict[Rank, float] = {}
        for rank in (None, *levels[:end]):
            least = price * self._cost.change(state.ranks, name, rank) - lost
            if least <= room:
                added[rank] = least + self._of(name, rank)
                if rank is not None and self._is_negligible(name, rank):
                    break
        return added

    def _moved(self, state: Allocation, name: str, rank: Rank) -> Allocation:
        """The allocation with another level of one site."""
        loss = state.loss + self._of(name, rank) - self._of(name, state.ranks[name])
        cost = state.cost + self._cost.change(state.ranks, name, rank)
        return Allocation({**state.ranks, name: rank}, cost, loss)

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
        exchanges = [
            self._moved(raised, less, low)
            for more in self._names
            for high in self._neighbours(more, state.ranks[more])[1]
            for raised in [self._moved(state, more, high)]
            for less in self._names
            for low in self._neighbours(less, state.ranks[less])[0]
            if less != more
        ]
        return sorted((each for each in exchanges if each.cost <= limit), key=lambda exchange: exchange.loss)

    def _neighbours(self, name: str, rank: Rank) -> tuple[list[int], list[int]]:
        """The levels next below and next above a rank."""
        if rank is None:
            return [], []
        levels = list(self._levels[name])
        return [level for level in levels if level < rank][-1:], [level for level in levels if level > rank][:1]

    def _whole(self, state: Allocation) -> float:
        """The loss of the whole program where it is measured, or the sum of the sites' losses."""
        return state.loss if self._measured is None else self._measured(state.ranks)

    def _allocation(self, ranks: Ranks, cost: float) -> Allocation:
        return Allocation(ranks, cost, sum(self._of(name, rank) for name, rank in ranks.items()))

    def _is_negligible(self, name: str, rank: Rank) -> bool:
        return self._of(name, rank) <= self._negligible

    def _of(self, name: str, rank: Rank) -> float:
        return 0.0 if rank is None else max(0.0, self._loss(name, rank))  # an energy's rounding may be below

    def _step(self, name: str, state: Allocation, limit: float | None = None) -> _Step | None:
        """The one of a site's next levels that avoids the most per added cost, None where nothing is lost.

        Levels are looked at as long as they would be the best if they lost nothing.
        """
        current, lost = state.ranks[name], self._of(name, state.ranks[name])
        if current is None or lost <= self._negligible:
            return None
        order, steps = self._names.index(name), list[_Step]()

        def step(rank: Rank, added: float, gained: float) -> _Step:
            return _Step(-gained / max(added, TINY), order, name, rank, state.cost + added, state.cost)

        alone = step(None, self._cost.change(state.ranks, name, None), lost)
        for rank in [level for level in self._levels[name] if level > current][:LOOK_AHEAD]:
            lossless = step(rank, self._cost.change(state.ranks, name, rank), lost)
            if lossless >= min((alone, *steps)) or (limit is not None and lossless.cost > limit):
                break
            gained = lost - self._of(name, rank)
            if gained > 0:
                steps.append(step(rank, lossless.cost - state.cost, gained))
        if limit is None or alone.cost <= limit:
            steps.append(alone)
        return min(steps, default=None)


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


def _undominated(states: Iterable[Allocation]) -> list[Allocation]:
    """Those that lose less than all cheaper ones."""
    kept: list[Allocation] = []
    for state in sorted(states, key=lambda state: (state.cost, state.loss)):
        if not kept or state.loss < kept[-1].loss:
            kept.append(state)
    return kept
