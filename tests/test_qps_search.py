"""The search for the highest rate, against servers whose limit is known."""

from __future__ import annotations

import pytest

from afm_fx.errors import BenchmarkError
from afm_fx.qps_search import MOST_PROBES, PRECISION, STEP_BACK, confirmed_qps, highest_qps


@pytest.mark.parametrize("limit", [3.0, 97.0, 1000.0, 51_234.0])
@pytest.mark.parametrize("first", [50.0, 2_000.0])
def test_the_highest_rate_is_found_within_the_precision(limit: float, first: float) -> None:
    tried: list[float] = []

    def holds(qps: float) -> bool:
        tried.append(qps)
        return qps <= limit

    assert limit / (1 + PRECISION) <= highest_qps(holds, first) <= limit
    assert len(tried) <= MOST_PROBES


def test_a_bound_that_no_rate_holds_is_told() -> None:
    with pytest.raises(BenchmarkError, match="not even"):
        highest_qps(lambda _: False, 1000.0)


def test_a_rate_that_fails_in_the_long_run_is_lowered_until_it_holds() -> None:
    assert confirmed_qps(lambda qps: qps < 90.1, 100.0) == pytest.approx(100 * STEP_BACK)
    with pytest.raises(BenchmarkError, match="no long run"):
        confirmed_qps(lambda _: False, 100.0)
