"""Tolerances: the smallest model that is not worse than allowed, by measurement on the programs themselves."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from afm_fx.errors import PolicyError
from afm_fx.measure import (
    LabelledBatch,
    LabelledRows,
    Worsening,
    auc_drop,
    labelled_rows,
    log_loss_rise,
    predicted_logits,
)
from afm_fx.planning.allocation import Allocation
from afm_fx.planning.apply_plan import apply_plan
from afm_fx.planning.cost import CostKind
from afm_fx.planning.plan import Evidence
from afm_fx.planning.planning import Decision, PlanningTask, Policy
from afm_fx.program import Program

CONFIDENCE = 0.95
"""Of the bound on a drop or rise, where nothing else is asked for."""

GROWTH = 1.25
"""A search raises the budget by this ratio until the limit is kept."""

CLOSE = 1.01
"""And then goes back between the last two until they are so close."""

_LIMITS = ("logit_rmse", "auc_drop", "logloss_rise")


@dataclass(frozen=True)
class Tolerance(Policy):
    """The fewest parameters with which the model is no worse than allowed; exactly one limit is given.

    ``logit_rmse`` needs no labels: it holds for the whole plan on the held-out rows of planning. ``auc_drop`` and
    ``logloss_rise`` need labelled rows, and hold for the upper confidence bound of the drop or rise, not for the
    estimate alone: with few rows the bound is wide, and the model stays large. They are compared with the original
    pair by pair (:mod:`afm_fx.measure.worsening`). A model that predicts several numbers has to keep the limit in each.

    The search measures some ten programs on the same rows and takes the smallest that passes, so the bound is slightly
    optimistic; what must be known without bias is measured on rows of its own.

    Attributes:
        logit_rmse: root mean squared difference of the logits, at most.
        auc_drop: AUC of the original minus that of the low-rank model, at most.
        logloss_rise: LogLoss of the low-rank model minus that of the original, in nats, at most.
        evaluation: batches of (inputs, labels), labels 0 or 1 [rows] or [rows, columns].
        confidence: of the one-sided bound.
    """

    joins_tables: ClassVar[bool] = True

    logit_rmse: float | None = None
    auc_drop: float | None = None
    logloss_rise: float | None = None
    evaluation: Iterable[LabelledBatch] | None = field(default=None, repr=False, compare=False)
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        given = [name for name in _LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PolicyError(f"Tolerance takes exactly one of {', '.join(_LIMITS)}, got {given or 'none'}")
        limit = self.limit
        if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 < limit < math.inf:
            raise PolicyError(f"Tolerance takes a {given[0]} above 0, got {limit!r}")
        if not 0.5 <= self.confidence < 1:
            raise PolicyError(f"Tolerance takes a confidence from 0.5 up to 1, got {self.confidence!r}")
        if self.logit_rmse is None and self.evaluation is None:
            raise PolicyError(f"{given[0]} needs evaluation: batches of (inputs, labels)")
        if self.logit_rmse is not None and self.evaluation is not None:
            raise PolicyError("logit_rmse is measured on held-out rows without labels; leave evaluation out")

    @property
    def quantity(self) -> str:
        """What is limited."""
        return next(name for name in _LIMITS if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """What it may be at most."""
        limit: float = getattr(self, self.quantity)
        return limit

    def describe(self) -> dict[str, Any]:
        """The policy as JSON; of the evaluation only that there was one."""
        described: dict[str, Any] = {"policy": "Tolerance", self.quantity: self.limit}
        return described if self.evaluation is None else {**described, "confidence": self.confidence}

    def choose(self, task: PlanningTask) -> Decision:
        """The smallest budget of parameters whose ranks keep the limit.

        Raises:
            PolicyError: no model keeps it, nothing is measured, or the evaluation cannot be used.
        """
        return self._by_logits(task) if self.logit_rmse is not None else self._by_labels(task)

    def _by_logits(self, task: PlanningTask) -> Decision:
        errors, limit = task.errors, self.limit
        if errors is None:
            raise PolicyError('logit_rmse needs measured logit errors: basis="measured" and held-out rows')
        if limit < errors.simulation.rounding:
            raise PolicyError(
                f"a logit_rmse of {limit:g} cannot be told from rounding: logits of this model's size differ by "
                f"{errors.simulation.rounding:.2g} in their last digit"
            )

        def error(allocation: Allocation) -> tuple[float, float]:
            measured = math.sqrt(errors.together(allocation.ranks))
            return measured, measured

        found = self._smallest(task, error)
        evidence = Evidence(
            "logit RMSE", limit, found.estimate, math.sqrt(found.allocation.loss),
            rows=errors.simulation.rows, tried=found.tried, conditions="held-out rows without labels",
        )  # fmt: skip
        return Decision(found.allocation.ranks, evidence=(evidence,))

    def _by_labels(self, task: PlanningTask) -> Decision:
        assert self.evaluation is not None  # noqa: S101 - checked on construction
        program, rows = task.program, labelled_rows(task.program, self.evaluation)
        before = predicted_logits(program, rows)

        def worsened(allocation: Allocation) -> tuple[float, float]:
            worst = self._worst(rows, before, apply_plan(program, task.assemble(allocation.ranks)))
            return worst.bound(self.confidence), worst.estimate

        found = self._smallest(task, worsened)
        evidence = Evidence(
            "AUC drop" if self.auc_drop is not None else "LogLoss rise", self.limit, found.estimate,
            bound=found.bound, confidence=self.confidence, rows=rows.rows, tried=found.tried,
            conditions="one-sided bound, paired with the original on the evaluation rows",
        )  # fmt: skip
        return Decision(found.allocation.ranks, evidence=(evidence,))

    def _smallest(self, task: PlanningTask, measured: Callable[[Allocation], tuple[float, float]]) -> _Measured:
        """The allocation of the smallest budget that keeps the limit (:func:`smallest_passing`).

        Args:
            measured: the bound that must keep the limit, and the estimate that it bounds.

        Raises:
            PolicyError: no budget keeps it.
        """
        frontier = task.frontier(CostKind.PARAMETERS)
        known: dict[tuple[tuple[str, int | None], ...], _Measured] = {}

        @functools.cache
        def within(budget: float) -> _Measured:
            allocation = frontier.refined(frontier.best(budget), budget)
            key = tuple(allocation.ranks.items())
            if key not in known:
                known[key] = _Measured(allocation, *measured(allocation))
            return known[key]

        lowest = frontier.cheapest().cost
        highest = max(lowest, task.costs.estimate(CostKind.PARAMETERS)({}))
        budget = smallest_passing(lowest, highest, lambda budget: within(budget).bound <= self.limit)
        best = replace(within(highest if budget is None else budget), tried=len(known))
        if budget is None:
            raise self._unreachable(best)
        return best

    def _worst(self, rows: LabelledRows, before: NDArray[np.float64], program: Program) -> Worsening:
        """The worsening of the column in which it is worst."""
        compare = auc_drop if self.auc_drop is not None else log_loss_rise
        after = predicted_logits(program, rows)
        columns = zip(rows.labels.T, before.T, after.T, strict=True)
        return max((compare(*each) for each in columns), key=lambda worsening: worsening.bound(self.confidence))

    def _unreachable(self, best: _Measured) -> PolicyError:
        confident = f" (with {self.confidence:.0%} confidence; more rows narrow it)"
        bounded = "" if self.logit_rmse is not None else confident
        return PolicyError(
            f"a {self.quantity} of {self.limit:g} cannot be reached: the most exact of {best.tried} measured models "
            f"has {best.bound:.4g}{bounded} at {best.allocation.cost:,.0f} parameters"
        )


@dataclass(frozen=True)
class _Measured:
    """An allocation whose program was measured: the bound that must keep the limit, and the estimate that it bounds."""

    allocation: Allocation
    bound: float
    estimate: float
    tried: int = 1


def smallest_passing(lowest: float, highest: float, passes: Callable[[float], bool]) -> float | None:
    """The smallest limit that passes a test which takes long; None where even the highest does not.

    The limit is raised until it passes, and then goes back by halves (of the ratio). Passing need not be monotonic:
    what is returned has passed itself, but a smaller limit that would have may be skipped.

    Args:
        lowest: limit, above 0.
        highest: limit, no smaller.
    """
    failed, limit = 0.0, lowest
    while not passes(limit):
        if limit >= highest:
            return None
        failed, limit = limit, min(limit * GROWTH, highest)
    while failed > 0 and limit > CLOSE * failed:
        middle = math.sqrt(failed * limit)
        failed, limit = (failed, middle) if passes(middle) else (middle, limit)
    return limit
