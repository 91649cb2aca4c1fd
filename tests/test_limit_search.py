"""The search finds the smallest limit that passes, with few tests and none far beyond it."""

from __future__ import annotations

import pytest

from afm_fx.limit_search import CLOSE, GROWTH, smallest_passing


@pytest.mark.parametrize("threshold", [0, 100, 101, 300, 1111, 1990, 2000])
def test_the_smallest_limit_that_passes_is_found_within_the_resolution(threshold: int) -> None:
    tested: list[float] = []

    def test(limit: float) -> float:
        tested.append(limit)
        return limit

    found = smallest_passing(100, 2000, test, lambda limit: limit >= threshold)
    assert found.passed
    assert max(100, threshold) <= found.limit == found.outcome <= max(100, CLOSE * threshold)
    assert found.tried == len(tested) <= 20
    assert max(tested) <= min(2000, max(100, GROWTH * threshold))


def test_where_none_passes_the_highest_is_reported() -> None:
    found = smallest_passing(100, 2000, lambda limit: limit, lambda limit: limit > 2000)
    assert not found.passed
    assert found.limit == found.outcome == 2000


def test_what_is_returned_has_passed_even_where_outcomes_go_up_and_down() -> None:
    found = smallest_passing(100, 2000, int, lambda limit: limit % 7 == 3)
    assert found.passed
    assert found.outcome % 7 == 3
