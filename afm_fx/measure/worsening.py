r"""How much worse one model predicts than another on the same rows, with a one-sided confidence bound.

Both comparisons are paired: what the models share cancels. They need one sort of each model's scores and no resamples.

*LogLoss.* The rise is a mean of the rows' own differences, so its standard error is theirs over the root of the rows.

*AUC.* Write V_i for the share of non-clicks that click i is scored above and W_j for the share of clicks scored above
non-click j. The AUC is the mean of either. Of the difference of two models, with d the differences of V and e those
of W over the P clicks and N non-clicks,

    Var = Var(d) / P + Var(e) / N

(DeLong, DeLong and Clarke-Pearson, Biometrics 1988). That is the variance of the paired bootstrap as the resamples
grow many, up to terms of order 1 / rows^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Worsening:
    """A rise of an error, or a drop of a merit.

    Attributes:
        estimate: positive where the second model is worse.
    """

    estimate: float
    standard_error: float

    def bound(self, confidence: float) -> float:
        """What the true worsening stays below with this confidence, by the normal approximation."""
        return self.estimate + NormalDist().inv_cdf(confidence) * self.standard_error


def auc_drop(labels: Rows, before: Rows, after: Rows) -> Worsening:
    """AUC of one model minus that of another.

    Args:
        labels: [rows], 0 or 1, both present.
        before: [rows], scores of the one.
        after: [rows], scores of the other.
    """
    differences = [
        one - other for one, other in zip(placements(labels, before), placements(labels, after), strict=True)
    ]
    variance = sum(float(each.var(ddof=1)) / len(each) if len(each) > 1 else math.inf for each in differences)
    return Worsening(float(differences[0].mean()), math.sqrt(variance))


def placements(labels: Rows, scores: Rows) -> tuple[Rows, Rows]:
    """For every click the share of non-clicks that it is scored above, and for every non-click the share of clicks
    that are scored above it, ties counted half; in the original order of the rows.
    """
    clicks, non_clicks = scores[labels > 0], scores[labels <= 0]
    return _share_below(clicks, non_clicks), 1 - _share_below(non_clicks, clicks)


def _share_below(scores: Rows, others: Rows) -> Rows:
    ascending = np.sort(others)
    below = np.searchsorted(ascending, scores, side="left") + np.searchsorted(ascending, scores, side="right")
    share: Rows = below / (2 * len(others))
    return share


def auc(labels: Rows, scores: Rows) -> float:
    """Area under the ROC curve, ties counted half; both classes are present."""
    return float(placements(labels, scores)[0].mean())


def log_loss_rise(labels: Rows, before: Rows, after: Rows) -> Worsening:
    """LogLoss of one model minus that of another, in nats.

    Args:
        labels: [rows], 0 or 1.
        before: [rows], logits of the other.
        after: [rows], logits of the one.
    """
    differences = log_losses(labels, after) - log_losses(labels, before)
    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return Worsening(float(differences.mean()), spread)


def log_losses(labels: Rows, logits: Rows) -> Rows:
    """The negative log-likelihood of every row, in nats, from logits."""
    return np.logaddexp(0.0, logits) - labels * logits
