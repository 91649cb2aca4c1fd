"""The cheapest allocation on a frontier that passes a test, where testing takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from afm_fx.allocation import Allocation

GROWTH = 1.25
"""A search goes up the frontier in steps of this ratio of costs until the test is passed."""

CLOSE = 1.01
"""And then halves the step until the costs are so close."""

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Search(Generic[Outcome]):
    """What a search found.

    Attributes:
        allocation: the cheapest that passed; where none did, the last one tested.
        outcome: of its test.
        passed: whether it passed.
        tried: how many were tested.
    """

    allocation: Allocation
    outcome: Outcome
    passed: bool
    tried: int


def cheapest_passing(
    states: Iterable[Allocation], test: Callable[[Allocation], Outcome], passes: Callable[[Outcome], bool]
) -> Search[Outcome]:
    """Goes up a frontier until the test is passed, then back between the last two.

    The frontier is walked no further than needed. Outcomes need not improve at every step: what is returned has passed
    itself, but a cheaper one may have been skipped.

    Args:
        states: at least one, costs ascending.
        test: takes long.
        passes: whether an outcome is good enough.
    """
    seen: list[Allocation] = []
    failed, tried = -1, 0
    outcome: Outcome | None = None
    source = iter(states)
    pending = next(source)
    while True:
        state, pending = pending, next(source, None)  # type: ignore[assignment]
        seen.append(state)
        due = failed < 0 or state.cost >= GROWTH * seen[failed].cost
        if pending is not None and not due:
            continue
        outcome, tried = test(state), tried + 1
        if passes(outcome):
            break
        if pending is None:
            return Search(state, outcome, passed=False, tried=tried)
        failed = len(seen) - 1
    low, high = failed, len(seen) - 1
    while high - low > 1 and (low < 0 or seen[high].cost > CLOSE * seen[low].cost):
        middle = (low + high) // 2
        found, tried = test(seen[middle]), tried + 1
        if passes(found):
            high, outcome = middle, found
        else:
            low = middle
    return Search(seen[high], outcome, passed=True, tried=tried)
