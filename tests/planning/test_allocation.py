"""The frontier: cheap to lossless, never over the limit, as good as trying everything."""

from __future__ import annotations

import itertools

import pytest

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


def best_of_all(limit: float) -> float:
    levels = (1, 2, 3, 4, 5, None)
    every = (dict(zip(LOSSES, ranks, strict=True)) for ranks in itertools.product(levels, repeat=3))
    return min(
        sum(0.0 if rank is None else loss(name, rank) for name, rank in ranks.items())
        for ranks in every
        if cost(ranks) <= limit
    )


@pytest.mark.parametrize("limit", [150, 180, 270, 290, 400, 520, 1050])
def test_within_a_limit_it_is_close_to_the_best_of_all(limit: float) -> None:
    *_, found = frontier().walk(limit)
    assert found.cost == cost(found.ranks) <= limit
    assert found.loss <= best_of_all(limit) * 1.3 + 0.02


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
    *_, wanted = frontier().walk(limit)
    found = frontier(estimate=Rows(off_by)).within(limit, cost)
    assert found is not None
    assert cost(found.ranks) <= limit
    assert found.ranks == wanted.ranks


def test_where_nothing_is_within_the_limit_nothing_is_found() -> None:
    assert frontier().within(149, cost) is None
