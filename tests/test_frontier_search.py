"""The search finds the cheapest that passes, with few tests, and walks no further than it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from afm_fx.allocation import Allocation
from afm_fx.frontier_search import CLOSE, cheapest_passing


def states(walked: list[int]) -> Iterator[Allocation]:
    for cost in range(100, 2000, 7):
        walked.append(cost)
        yield Allocation({}, cost, 0.0)


@pytest.mark.parametrize("threshold", [0, 100, 101, 300, 1111, 1990])
def test_the_cheapest_that_passes_is_found_within_the_resolution(threshold: int) -> None:
    walked: list[int] = []
    found = cheapest_passing(states(walked), lambda state: state.cost, lambda cost: cost >= threshold)
    cheapest = next(cost for cost in range(100, 2000, 7) if cost >= threshold)
    assert found.passed
    assert cheapest <= found.allocation.cost <= max(cheapest + 7, CLOSE * cheapest)
    assert found.outcome == found.allocation.cost
    assert found.tried <= 22
    assert max(walked) <= 1.3 * found.allocation.cost + 14


def test_where_none_passes_the_last_one_is_reported() -> None:
    found = cheapest_passing(states([]), lambda state: state.cost, lambda cost: cost > 10_000)
    assert not found.passed
    assert found.allocation.cost == found.outcome == list(range(100, 2000, 7))[-1]


def test_what_is_returned_has_passed_even_where_tests_go_up_and_down() -> None:
    found = cheapest_passing(states([]), lambda state: state.cost, lambda cost: (cost // 7) % 3 == 1)
    assert found.passed
    assert (found.outcome // 7) % 3 == 1
