"""The best allocation within a limit on a cost that is known exactly only for a program that is made.

The frontier is walked with an estimate. What the estimate is off by where the walk ends is allowed for, and it is
walked again, until nothing changes; nothing that exceeds the limit by the exact count is ever taken.
"""

from __future__ import annotations

from afm_fx.allocation import Allocation, Cost, Frontier

MAX_WALKS = 4
"""Walks with a corrected estimate; the third seldom differs from the second."""

CLOSE = 0.001
"""Share of the limit that a correction may still change by."""


def best_within(frontier: Frontier, limit: float, exact: Cost) -> Allocation | None:
    """The allocation of the smallest loss whose exact cost is within a limit; None where the cheapest is not.

    Args:
        frontier: of losses over the estimate.
        limit: of the exact cost.
        exact: the cost of the program made; takes long.
    """
    found: list[Allocation] = []
    correction = 0.0
    states: list[Allocation] = []
    for _ in range(MAX_WALKS):
        states = list(frontier.walk(limit - correction))
        spent = exact(states[-1].ranks)
        if spent <= limit:
            found.append(states[-1])
        difference = spent - states[-1].cost
        if abs(difference - correction) <= CLOSE * limit:
            break
        correction = difference
    if not found:
        return _last_within(states, limit, exact)
    return min(found, key=lambda allocation: allocation.loss)


def _last_within(states: list[Allocation], limit: float, exact: Cost) -> Allocation | None:
    """The last state that fits, by bisection: costs rise along a walk."""
    if exact(states[0].ranks) > limit:
        return None
    low, high = 0, len(states) - 1  # states[low] fits, states[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if exact(states[middle].ranks) <= limit else (low, middle)
    return states[low]
