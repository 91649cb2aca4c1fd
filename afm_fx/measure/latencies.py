"""Percentiles of the times of calls, and how many calls each percentile needs.

The slowest of n calls is at least as slow as the q-quantile of all calls with probability 1 - q^n. A percentile is only
given where that is 95 % or more: below, whatever is printed for it says nothing about the tail. So p90 needs 29 calls,
p99 needs 299 and p99.9 needs 2,995.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Probability with which the slowest call must lie beyond a percentile for it to be given."""

TOO_FEW = "-"
"""For a percentile that the calls cannot carry."""


@dataclass(frozen=True)
class Latencies:
    """Times of calls, in microseconds.

    Attributes:
        p50_us: their median; then the 90th, 99th and 99.9th percentile, None where there were too few calls, see
            :func:`calls_needed`.
    """

    calls: int
    p50_us: float
    p90_us: float | None
    p99_us: float | None
    p999_us: float | None

    @staticmethod
    def of(calls: int, percentile_us: Callable[[float], float]) -> Latencies:
        """The percentiles that so many calls carry; ``percentile_us`` gives any between 0 and 100 in microseconds."""
        tail = [percentile_us(q) if calls >= calls_needed(q) else None for q in (90.0, 99.0, 99.9)]
        return Latencies(calls, percentile_us(50.0), *tail)

    def cells(self) -> tuple[str, ...]:
        """The four percentiles as text."""
        return tuple(shown_us(value) for value in (self.p50_us, self.p90_us, self.p99_us, self.p999_us))


def latencies(nanoseconds: Sequence[int] | NDArray[np.int64]) -> Latencies:
    """The percentiles of at least one call's time in nanoseconds."""
    spent = np.asarray(nanoseconds) / 1e3
    return Latencies.of(len(spent), lambda percentile: float(np.percentile(spent, percentile)))


def calls_needed(percentile: float) -> int:
    """Fewest calls that carry a percentile between 0 and 100."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(percentile / 100))


def shown_us(value: float | None) -> str:
    """Microseconds as text: one decimal below 10, none above, a dash where there were too few calls."""
    if value is None:
        return TOO_FEW
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"
