"""Percentiles of call times: numpy's, and none that the calls cannot carry."""

from __future__ import annotations

import numpy as np
import pytest

from afm_fx.measure.latencies import calls_needed, latencies, shown_us


def test_percentiles_are_numpys_in_microseconds() -> None:
    spent = np.random.default_rng(0).integers(1_000, 90_000, size=3_000)
    found = latencies(spent)
    assert found.calls == 3_000
    assert [found.p50_us, found.p90_us, found.p99_us, found.p999_us] == pytest.approx(
        np.percentile(spent, [50, 90, 99, 99.9]) / 1e3, rel=1e-12
    )


@pytest.mark.parametrize(("percentile", "field"), [(90, "p90_us"), (99, "p99_us"), (99.9, "p999_us")])
def test_a_percentile_is_given_from_the_call_on_that_makes_it_likely_to_lie_below_the_slowest(
    percentile: float, field: str
) -> None:
    enough = calls_needed(percentile)
    assert 1 - (percentile / 100) ** enough >= 0.95 > 1 - (percentile / 100) ** (enough - 1)
    assert getattr(latencies(range(1, enough)), field) is None
    assert getattr(latencies(range(1, enough + 1)), field) is not None


def test_the_calls_needed_are_those_that_the_documentation_names() -> None:
    assert [calls_needed(percentile) for percentile in (90, 99, 99.9)] == [29, 299, 2995]


def test_one_call_has_a_median_and_nothing_else() -> None:
    assert latencies([2_500]).cells() == ("2.5", "-", "-", "-")
    assert shown_us(12_345.6) == "12,346"
