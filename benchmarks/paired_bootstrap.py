r"""AUC, LogLoss, and paired bootstrap confidence intervals of AUC differences.

With row weights w (in a resample: how often each row was drawn) the AUC is the weighted share of (click, non-click)
pairs that the score orders rightly, ties counted half:

    AUC = sum_i w_i (N(s_j < s_i) + N(s_j <= s_i)) / 2 / (P N)

over clicks i, where N(...) is the weight of the non-clicks j it describes and P and N are the weights of all clicks and
all non-clicks. Which non-clicks those are depends on the scores alone: sorted once, they are a prefix, so a resample
costs two gathers of weights, one cumulative sum and a scalar product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from afm_fx.errors import UserError
from afm_fx.progress import track

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


@dataclass(frozen=True)
class AucDifference:
    """AUC of ``first`` minus AUC of ``second`` on the same rows, with a percentile bootstrap interval."""

    first: str
    second: str
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+z.4f} [{self.low:+z.4f},{self.high:+z.4f}]"


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half; NaN where only one class occurs."""
    return RankedScores(labels, scores).auc()


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean binary cross-entropy in nats; probabilities are kept 1e-7 away from 0 and 1."""
    truth = np.asarray(labels, dtype=np.float64)
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return float(-np.mean(truth * np.log(clipped) + (1 - truth) * np.log1p(-clipped)))


def bootstrap_auc_differences(
    labels: ArrayLike,
    scores: Mapping[str, ArrayLike],
    pairs: Sequence[tuple[str, str]],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 2024,
) -> list[AucDifference]:
    """Paired bootstrap: every resample of the rows scores all models, so what they share cancels.

    Args:
        labels: [rows], 0 or 1.
        scores: per model [rows].
        pairs: the (first, second) models to subtract.
        resamples: how many times the rows are drawn with replacement. One without both classes is drawn again.
        confidence: of the percentile interval.

    Raises:
        UserError: bad settings, a pair names an unknown model, or the labels hold one class only.
    """
    truth = np.asarray(labels, dtype=np.float64)
    unknown = [name for pair in pairs for name in pair if name not in scores]
    if unknown:
        raise UserError(f"no scores of '{unknown[0]}'; there are {', '.join(scores)}")
    if resamples < 1 or not 0 < confidence < 1:
        raise UserError(f"resamples {resamples} must be positive and confidence {confidence} between 0 and 1")
    if len(truth) == 0 or truth.min() == truth.max():
        raise UserError("the AUC needs both clicks and non-clicks")
    used = list(dict.fromkeys(name for pair in pairs for name in pair))
    ranked = {name: RankedScores(truth, scores[name]) for name in used}
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(used)))
    for row in track(range(resamples), "Bootstrap"):
        weights = _resample(truth, generator)
        drawn[row] = [ranked[name].auc(weights) for name in used]
    tail = (1 - confidence) / 2
    results = []
    for first, second in pairs:
        differences = drawn[:, used.index(first)] - drawn[:, used.index(second)]
        low, high = np.quantile(differences, [tail, 1 - tail])
        results.append(
            AucDifference(first, second, ranked[first].auc() - ranked[second].auc(), float(low), float(high))
        )
    return results


def _resample(truth: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """How often each row is drawn when as many as there are are drawn with replacement, [rows]."""
    while True:
        weights = np.bincount(generator.integers(len(truth), size=len(truth)), minlength=len(truth)).astype(np.float64)
        if 0 < weights @ (truth > 0) < len(truth):
            return weights
