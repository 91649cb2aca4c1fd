"""Paired bootstrap confidence intervals of AUC differences (a resample costs what :class:`RankedScores` says)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from afm_fx.errors import UserError
from afm_fx.io import track
from benchmarks.quality.ranking_metrics import RankedScores


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
