"""The smallest limit whose plan passes a test, where planning and testing take long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

GROWTH = 1.25
"""A search raises the limit by this ratio until the test is passed."""

CLOSE = 1.01
"""And then goes back between the last two until they are so close."""

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Search(Generic[Outcome]):
    """What a search found.

    Attributes:
        limit: the smallest that passed; where none did, the highest.
        outcome: of its test.
        passed: whether it passed.
        tried: how many were tested.
    """

    limit: float
    outcome: Outcome
    passed: bool
    tried: int


def smallest_passing(
    lowest: float, highest: float, test: Callable[[float], Outcome], passes: Callable[[Outcome], bool]
) -> Search[Outcome]:
    """Raises a limit until the test is passed, then goes back by halves (of the ratio).

    Outcomes need not improve with every rise: what is returned has passed itself, but a smaller limit that would have
    may be skipped.

    Args:
        lowest: limit, above 0.
        highest: limit, no smaller.
        test: takes long.
        passes: whether an outcome is good enough.
    """
    failed, limit, tried = 0.0, lowest, 1
    outcome = test(limit)
    while not passes(outcome):
        if limit >= highest:
            return Search(limit, outcome, passed=False, tried=tried)
        failed, limit, tried = limit, min(limit * GROWTH, highest), tried + 1
        outcome = test(limit)
    while failed > 0 and limit > CLOSE * failed:
        middle = (failed * limit) ** 0.5
        found, tried = test(middle), tried + 1
        if passes(found):
            limit, outcome = middle, found
        else:
            failed = middle
    return Search(limit, outcome, passed=True, tried=tried)
