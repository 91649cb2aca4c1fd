"""One model of a sweep, measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep.

    Attributes:
        budget: share of the parameters that was asked for; 1 for the original.
        parameters: that are left, before packing.
        share: of the original's parameters.
        bytes: of its state, before packing.
        predicted_logit_rmse: root mean squared logit error on held-out rows as the sites' own errors add up to it.
        logit_rmse: the same measured on the whole model.
        auc: on the labelled rows (mean over the columns), None without labels.
        auc_drop_bound: upper 95 % bound of the original's AUC minus this one's (the worst column), None without labels.
        log_loss: on the labelled rows, in nats (mean over the columns), None without labels.
        p50_us: median latency packed in ONNX Runtime, None where nothing was timed.
    """

    budget: float
    parameters: int
    share: float
    bytes: int
    predicted_logit_rmse: float
    logit_rmse: float
    auc: float | None = None
    auc_drop_bound: float | None = None
    log_loss: float | None = None
    p50_us: float | None = None
