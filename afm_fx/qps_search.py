"""Finds the highest rate of queries that a server holds, by doubling and bisection."""

from __future__ import annotations

import math
from collections.abc import Callable

from afm_fx.errors import BenchmarkError

PRECISION = 0.05
"""The search ends where the lowest rate that failed is at most so much above the highest that held."""

STEP_BACK = 0.9
"""A rate that held in a short run and not in the long one is lowered to this share of itself."""

MOST_PROBES, MOST_CONFIRMATIONS = 16, 12


def highest_qps(holds: Callable[[float], bool], first: float) -> float:
    """The highest rate found that holds, within ``PRECISION``.

    Args:
        holds: a short run at a rate in queries per second; whether the bound held.
        first: the rate to begin with.

    Raises:
        BenchmarkError: none of the rates held.
    """
    low, high, qps = 0.0, math.inf, first
    for _ in range(MOST_PROBES):
        if holds(qps):
            low = qps
        else:
            high = qps
        if low > 0 and high <= low * (1 + PRECISION):
            break
        qps = _next(low, high)
    if low == 0:
        raise BenchmarkError(f"not even {high:.3g} queries a second stay within the latency bound; raise the bound")
    return low


def _next(low: float, high: float) -> float:
    if low == 0:
        return high / 2
    return 2 * low if math.isinf(high) else math.sqrt(low * high)


def confirmed_qps(valid: Callable[[float], bool], qps: float) -> float:
    """The rate at which a long run is valid: the one found, or a little less.

    Args:
        valid: a long run at a rate in queries per second.
        qps: what short runs found.

    Raises:
        BenchmarkError: no long run was valid, down to a third of the rate.
    """
    for _ in range(MOST_CONFIRMATIONS):
        if valid(qps):
            return qps
        qps *= STEP_BACK
    raise BenchmarkError(
        f"short runs held, but no long run at {qps / STEP_BACK:.3g} queries a second or more was valid; is the machine "
        "busy with something else, or is the run too short (--seconds)?"
    )
