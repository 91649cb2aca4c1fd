"""Tolerances: the smallest model that is not worse than allowed, by measurement on the programs themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from afm_fx.allocation import Allocation
from afm_fx.compression import apply_plan
from afm_fx.errors import PolicyError
from afm_fx.evaluation import LabelledBatch, LabelledRows, labelled_rows, predicted_logits
from afm_fx.evidence import Evidence
from afm_fx.limit_search import Search, smallest_passing
from afm_fx.policies import choices_of, frontier_of, refined
from afm_fx.program import Program
from afm_fx.situation import Decision, Situation
from afm_fx.worsening import Worsening, auc_drop, log_loss_rise

Compare = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], Worsening]

Found = TypeVar("Found")

CONFIDENCE = 0.95
"""Of the bound on a drop or rise, where nothing else is asked for."""

_LIMITS = ("logit_rmse", "auc_drop", "logloss_rise")


@dataclass(frozen=True)
class Tolerance:
    """The fewest parameters with which the model is no worse than allowed; exactly one limit is given.

    ``logit_rmse`` needs no labels: it holds for the whole plan on the held-out rows of planning. ``auc_drop`` and
    ``logloss_rise`` need labelled rows, and hold for the upper confidence bound of the drop or rise, not for the
    estimate alone: with few rows the bound is wide, and the model stays large. They are compared with the original
    pair by pair (:mod:`afm_fx.worsening`). A model that predicts several numbers has to keep the limit in each.

    The search measures some ten programs on the same rows and takes the smallest that passes, so the bound is slightly
    optimistic; what must be known without bias is measured on rows of its own.

    Attributes:
        logit_rmse: root mean squared difference of the logits, at most.
        auc_drop: AUC of the original minus that of the low-rank model, at most.
        logloss_rise: LogLoss of the low-rank model minus that of the original, in nats, at most.
        evaluation: batches of (inputs, labels), labels 0 or 1 [rows] or [rows, columns].
        confidence: of the one-sided bound.
    """

    measures: ClassVar[bool] = True

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

    @property
    def joins_tables(self) -> bool:
        """One code for tables of one index saves parameters."""
        return True

    def describe(self) -> dict[str, Any]:
        """The policy as JSON; of the evaluation only that there was one."""
        described: dict[str, Any] = {"policy": "Tolerance", self.quantity: self.limit}
        return described if self.evaluation is None else {**described, "confidence": self.confidence}

    def choose(self, situation: Situation) -> Decision:
        """The smallest budget of parameters whose ranks keep the limit.

        Raises:
            PolicyError: no model keeps it, nothing is measured, or the evaluation cannot be used.
        """
        return self._by_logits(situation) if self.logit_rmse is not None else self._by_labels(situation)

    def _by_logits(self, situation: Situation) -> Decision:
        errors, limit = situation.errors, self.limit
        if errors is None:
            raise PolicyError('logit_rmse needs measured logit errors: basis="measured" and held-out rows')
        if limit < errors.simulation.rounding:
            raise PolicyError(
                f"a logit_rmse of {limit:g} cannot be told from rounding: logits of this model's size differ by "
                f"{errors.simulation.rounding:.2g} in their last digit"
            )

        def measured(allocation: Allocation) -> float:
            return math.sqrt(errors.together(allocation.ranks))

        found = self._smallest(situation, measured, lambda error: error <= limit)
        allocation, error = found.outcome
        if not found.passed:
            raise self._unreachable(found.tried, allocation, error)
        evidence = Evidence(
            "logit RMSE", limit, error, math.sqrt(allocation.loss),
            rows=errors.simulation.rows, tried=found.tried, conditions="held-out rows without labels",
        )  # fmt: skip
        return Decision(choices_of(situation, allocation), (evidence,), final=True)

    def _by_labels(self, situation: Situation) -> Decision:
        program, assemble = situation.program, situation.assemble
        if program is None or assemble is None or self.evaluation is None:
            raise PolicyError(f"{self.quantity} needs a program to measure")
        rows = labelled_rows(program, self.evaluation)
        before = predicted_logits(program, rows)

        def measured(allocation: Allocation) -> Worsening:
            return self._worst(rows, before, apply_plan(program, assemble(choices_of(situation, allocation))))

        found = self._smallest(situation, measured, lambda each: each.bound(self.confidence) <= self.limit)
        allocation, worsening = found.outcome
        bound = worsening.bound(self.confidence)
        if not found.passed:
            raise self._unreachable(found.tried, allocation, bound)
        evidence = Evidence(
            "AUC drop" if self.auc_drop is not None else "LogLoss rise", self.limit, worsening.estimate,
            bound=bound, confidence=self.confidence, rows=rows.rows, tried=found.tried,
            conditions="one-sided bound, paired with the original on the evaluation rows",
        )  # fmt: skip
        return Decision(choices_of(situation, allocation), (evidence,), final=True)

    def _smallest(
        self, situation: Situation, measured: Callable[[Allocation], Found], keeps: Callable[[Found], bool]
    ) -> Search[tuple[Allocation, Found]]:
        """The smallest budget of parameters whose allocation keeps the limit."""
        frontier = frontier_of(situation)
        known: dict[tuple[tuple[str, int | None], ...], Found] = {}

        def test(budget: float) -> tuple[Allocation, Found]:
            *_, last = frontier.walk(budget)
            allocation = refined(situation, frontier, last, budget)
            key = tuple(allocation.ranks.items())
            if key not in known:
                known[key] = measured(allocation)
            return allocation, known[key]

        lowest = frontier.cheapest().cost
        highest = max(lowest, situation.ledger.total({}))
        found = smallest_passing(lowest, highest, test, lambda outcome: keeps(outcome[1]))
        return replace(found, tried=len(known))

    def _worst(self, rows: LabelledRows, before: NDArray[np.float64], program: Program) -> Worsening:
        """The worsening of the column in which it is worst."""
        compare: Compare = auc_drop if self.auc_drop is not None else log_loss_rise
        after = predicted_logits(program, rows)
        columns = zip(rows.labels.T, before.T, after.T, strict=True)
        return max((compare(*each) for each in columns), key=lambda worsening: worsening.bound(self.confidence))

    def _unreachable(self, tried: int, allocation: Allocation, reached: float) -> PolicyError:
        confident = f" (with {self.confidence:.0%} confidence; more rows narrow it)"
        bounded = "" if self.logit_rmse is not None else confident
        return PolicyError(
            f"a {self.quantity} of {self.limit:g} cannot be reached: the most exact of {tried} measured models "
            f"has {reached:.4g}{bounded} at {allocation.cost:,.0f} parameters"
        )
