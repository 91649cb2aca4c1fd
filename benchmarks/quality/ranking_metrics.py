r"""AUC and LogLoss of click predictions.

With row weights w (in a resample: how often each row was drawn) the AUC is the weighted share of (click, non-click)
pairs that the score orders rightly, ties counted half:

    AUC = sum_i w_i (N(s_j < s_i) + N(s_j <= s_i)) / 2 / (P N)

over clicks i, where N(...) is the weight of the non-clicks j it describes and P and N are the weights of all clicks and
all non-clicks. Which non-clicks those are depends on the scores alone: sorted once, they are a prefix, so a resample
costs two gathers of weights, one cumulative sum and a scalar product.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from afm_fx.errors import UserError

PROBABILITY_FLOOR = 1e-7


class RankedScores:
    """Scores sorted once, whose AUC can then be had under any row weights.

    Args:
        labels: [rows], 0 or 1.
        scores: [rows], any monotone function of the click probability.

    Raises:
        UserError: lengths differ, or a score is NaN.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        values, truth = np.asarray(scores), np.asarray(labels)
        if values.shape != truth.shape or values.ndim != 1:
            raise UserError(f"labels {truth.shape} and scores {values.shape} must be vectors of one length")
        if np.isnan(values).any():
            raise UserError(f"score {int(np.flatnonzero(np.isnan(values))[0])} is NaN")
        self._rows = len(values)
        order = np.argsort(values, kind="stable")
        clicked = truth[order] > 0
        self._clicks, self._non_clicks = order[clicked], order[~clicked]
        ascending = values[self._non_clicks]
        self._below = np.searchsorted(ascending, values[self._clicks], side="left")
        self._not_above = np.searchsorted(ascending, values[self._clicks], side="right")
        self._tied = bool((self._below != self._not_above).any())

    def auc(self, weights: NDArray[np.float64] | None = None) -> float:
        """The AUC under row weights [rows] (in the original order; all one where left out), NaN for one class."""
        given = np.ones(self._rows) if weights is None else weights
        clicks = given.take(self._clicks)
        cumulative = np.zeros(len(self._non_clicks) + 1)
        np.cumsum(given.take(self._non_clicks), out=cumulative[1:])
        pairs = clicks @ cumulative.take(self._below)
        if self._tied:
            pairs = (pairs + clicks @ cumulative.take(self._not_above)) / 2
        possible = float(clicks.sum() * cumulative[-1])
        return float(pairs) / possible if possible > 0 else float("nan")


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half; NaN where only one class occurs."""
    return RankedScores(labels, scores).auc()


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean binary cross-entropy in nats; probabilities are kept 1e-7 away from 0 and 1."""
    truth = np.asarray(labels, dtype=np.float64)
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return float(-np.mean(truth * np.log(clipped) + (1 - truth) * np.log1p(-clipped)))
