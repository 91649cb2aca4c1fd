r"""AUC, LogLoss, and paired bootstrap confidence intervals of AUC differences.

With weights w (in a resample: how often each row was drawn) the AUC is the weighted share of (click, non-click)
pairs that the score orders rightly, ties counted half:

    AUC = sum_g P_g (N_<g + N_g / 2) / (P N)

over groups g of equal scores in ascending order, P_g and N_g the weights of clicks and non-clicks in the group, N_<g
those of non-clicks in all groups before it. The sort depends on the scores alone, so it is made once; a resample costs
one gather and two cumulative sums.
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
        values = np.asarray(scores)
        self._labels = np.asarray(labels)
        if values.shape != self._labels.shape or values.ndim != 1:
            raise UserError(f"labels {self._labels.shape} and scores {values.shape} must be vectors of one length")
        if np.isnan(values).any():
            raise UserError(f"score {int(np.flatnonzero(np.isnan(values))[0])} is NaN")
        self.order = np.argsort(values, kind="stable")
        ascending = values[self.order]
        self._clicks = self._labels[self.order] > 0
        self._group_ends = np.flatnonzero(np.append(ascending[1:] != ascending[:-1], len(values) > 0))
        self._tied = len(self._group_ends) < len(values)

    def auc(self, weights: NDArray[np.float64] | None = None) -> float:
        """The AUC under row weights [rows] (in the original order; all one where left out), NaN for one class."""
        ordered = np.ones(len(self.order)) if weights is None else weights[self.order]
        clicks = np.where(self._clicks, ordered, 0.0)
        non_clicks = ordered - clicks
        below = np.cumsum(non_clicks)
        if not self._tied:
            total, clicks_total = below[-1], clicks.sum()
            # A row is a click or none, so N_g is 0 wherever P_g is not.
            pairs = float(clicks @ below)
        else:
            ends = below[self._group_ends]
            group_clicks = np.diff(np.cumsum(clicks)[self._group_ends], prepend=0.0)
            group_non_clicks = np.diff(ends, prepend=0.0)
            total, clicks_total = ends[-1], group_clicks.sum()
            pairs = float(group_clicks @ (ends - group_non_clicks / 2))
        return pairs / (total * clicks_total) if total * clicks_total > 0 else float("nan")


@dataclass(frozen=True)
class AucDifference:
    """AUC of ``first`` minus AUC of ``second`` on the same rows, with a percentile bootstrap interval."""

    first: str
    second: str
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


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
