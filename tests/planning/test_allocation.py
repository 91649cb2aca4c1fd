"""The frontier: cheap to lossless; within a limit, as good as trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from afm_fx.planning.allocation import Frontier, Measured, Rank
from afm_fx.planning.cost import RankCost, Ranks

LOSSES = {
    "big": [9.0, 4.0, 1.0, 0.5, 0.1],
    "small": [2.0, 1.9, 0.2, 0.15, 0.0],
    "useless": [0.01, 0.009, 0.008, 0.007, 0.006],
}
ROWS = {"big": 100, "small": 10, "useless": 40}
WIDTH = 7


def loss(name: str, rank: int) -> float:
    return LOSSES[name][rank - 1]


class Rows(RankCost):
    """What tables of ROWS rows cost, and so many numbers more."""

    def __init__(self, more: float = 0.0) -> None:
        super().__init__([], {}, more)
        self.more = more

    def __call__(self, ranks: Ranks) -> float:
        return self.more + sum(ROWS[name] * (WIDTH if rank is None else rank) for name, rank in ranks.items())

    def change(self, ranks: Ranks, name: str, rank: Rank) -> float:
        return self({**ranks, name: rank}) - self(ranks)


cost = Rows()


def frontier(negligible: float = 0.0, measured: Measured | None = None, estimate: Rows = cost) -> Frontier:
    return Frontier(dict.fromkeys(LOSSES, range(1, 6)), loss, estimate, negligible=negligible, measured=measured)


class Products(RankCost):
    """What tables cost by rows and width, and products of pairs of widths, as a Linear between two codes has."""

    def __init__(
        self, rows: Mapping[str, float], widths: Mapping[str, int], pairs: Mapping[tuple[str, str], float]
    ) -> None:
        super().__init__([], {}, 0.0)
        self.rows, self.widths, self.pairs = rows, widths, pairs

    def __call__(self, ranks: Ranks) -> float:
        width = {name: self.widths[name] if rank is None else rank for name, rank in ranks.items()}
        tables = sum(rows * width[name] for name, rows in self.rows.items())
        return tables + sum(price * width[one] * width[other] for (one, other), price in self.pairs.items())

    def change(self, ranks: Ranks, name: str, rank: Rank) -> float:
        return self({**ranks, name: rank}) - self(ranks)


@dataclass(frozen=True)
class Problem:
    """Losses from the lowest level on, what levels cost, and a limit: the cost of one of all allocations."""

    losses: Mapping[str, Sequence[float]]
    lowest: int
    cost: Products
    place: float

    def ratio(self) -> float:
        """The loss of the best allocation found over that of the best there is."""
        levels = {name: range(self.lowest, self.lowest + len(losses)) for name, losses in self.losses.items()}

        def loss(name: str, rank: Rank) -> float:
            return 0.0 if rank is None else self.losses[name][rank - self.lowest]

        combinations = itertools.product(*([*each, None] for each in levels.values()))
        every = [dict(zip(levels, ranks, strict=True)) for ranks in combinations]
        costs = [self.cost(ranks) for ranks in every]
        limit = sorted(costs)[int(self.place * (len(costs) - 1))]
        lowest = min(
            sum(loss(name, rank) for name, rank in ranks.items())
            for ranks, cost in zip(every, costs, strict=True)
            if cost <= limit
        )
        found = Frontier(levels, loss, self.cost).best(limit)
        assert found.cost == pytest.approx(self.cost(found.ranks))
        assert found.loss == pytest.approx(sum(loss(name, rank) for name, rank in found.ranks.items()))
        if self.cost(found.ranks) > limit:
            return float("inf")
        return (found.loss + 1e-9) / (lowest + 1e-9)


@st.composite
def additive_problems(draw: st.DrawFn) -> Problem:
    """Two to four tables whose losses fall evenly, in cliffs, or even rise."""
    value = st.one_of(st.sampled_from([0.0, 0.001, 0.01, 0.1, 1.0, 10.0]), st.floats(0, 1))
    curves = draw(st.lists(st.lists(value, min_size=1, max_size=6), min_size=2, max_size=4))
    falling = draw(st.booleans())
    losses = {str(place): sorted(each, reverse=True) if falling else each for place, each in enumerate(curves)}
    lowest = draw(st.integers(0, 1))
    rows = {name: draw(st.one_of(st.integers(1, 20), st.integers(1, 1000))) for name in losses}
    widths = {name: max(1, lowest + len(each) - 1 + draw(st.integers(0, 3))) for name, each in losses.items()}
    return Problem(losses, lowest, Products(rows, widths, {}), draw(st.floats(0, 1)))


@given(additive_problems())
@settings(max_examples=500)
def test_where_costs_add_up_the_best_found_is_within_5_percent_of_the_best_of_all(problem: Problem) -> None:
    assert problem.ratio() <= 1.05


def test_where_costs_depend_on_one_another_it_nearly_always_is() -> None:
    ratios = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        names = [str(place) for place in range(generator.integers(2, 5))]
        size = int(generator.integers(2, 7))
        losses = {name: np.sort(generator.random(size) ** 4)[::-1].tolist() for name in names}
        rows = {name: float(generator.integers(1, 200)) for name in names}
        pairs = {pair: float(generator.integers(1, 40)) for pair in itertools.pairwise(names)}
        costs = Products(rows, dict.fromkeys(names, size + 1), pairs)
        ratios.append(Problem(losses, 1, costs, generator.random()).ratio())
    assert np.mean(np.array(ratios) <= 1.05) >= 0.99
    assert max(ratios) < 1.5


def test_it_skips_a_level_that_only_helps_with_the_next() -> None:
    taken = [state.ranks["small"] for state in frontier().walk()]
    assert taken.index(3) == next(place for place, rank in enumerate(taken) if rank != 1)


def test_costs_rise_losses_fall_and_the_end_loses_nothing() -> None:
    states = list(frontier().walk())
    assert [state.cost for state in states] == sorted(state.cost for state in states)
    assert all(one.loss > other.loss for one, other in itertools.pairwise(states))
    assert states[-1].loss == 0.0


def test_negligible_losses_are_not_paid_for() -> None:
    *_, end = frontier(negligible=0.02).walk()
    assert end.ranks["useless"] == 1


def test_what_costs_less_left_alone_is_left_alone_from_the_start() -> None:
    dear = Frontier({"small": (WIDTH,)}, loss, cost)
    assert dear.cheapest().ranks == {"small": None}


def test_refining_finds_what_only_the_whole_program_shows() -> None:
    *_, state = frontier().walk(420)

    def together(ranks: Ranks) -> float:
        alone = sum(0.0 if rank is None else loss(name, rank) for name, rank in ranks.items())
        return alone + (5.0 if ranks["big"] == state.ranks["big"] else 0.0)

    better = frontier(measured=together).refined(state, 420)
    assert better.cost == cost(better.ranks) <= 420
    assert together(better.ranks) < together(state.ranks)


def test_refining_keeps_what_cannot_be_bettered() -> None:
    *_, state = frontier().walk(400)
    assert frontier(measured=lambda ranks: 1.0).refined(state, 400) == state


@pytest.mark.parametrize("limit", [150, 180, 270, 290, 400, 520])
@pytest.mark.parametrize("off_by", [-40.0, 0.0, 40.0])
def test_a_wrong_estimate_is_corrected_and_the_exact_cost_is_within_the_limit(limit: float, off_by: float) -> None:
    wanted = frontier().best(limit)
    found = frontier(estimate=Rows(off_by)).within(limit, cost)
    assert found is not None
    assert cost(found.ranks) <= limit
    assert found.ranks == wanted.ranks


def test_where_nothing_is_within_the_limit_nothing_is_found() -> None:
    assert frontier().within(149, cost) is None
