"""How well a compressed model predicts, beside the original, on rows with labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from afm_fx.measure.evaluation import LabelledBatch, labelled_rows, predicted_logits
from afm_fx.measure.worsening import Worsening, auc, auc_drop, log_loss_rise, log_losses
from afm_fx.program import Program


@dataclass(frozen=True)
class TaskQuality:
    """Both models on one column of labels; LogLoss is in nats, changes for the worse are paired."""

    auc_before: float
    auc_after: float
    auc_drop: Worsening
    log_loss_before: float
    log_loss_after: float
    log_loss_rise: Worsening


@dataclass(frozen=True)
class QualityComparison:
    """Both models on the same rows, an entry per column of labels."""

    rows: int
    tasks: tuple[TaskQuality, ...]


def compare_quality(original: Program, compressed: Program, evaluation: Iterable[LabelledBatch]) -> QualityComparison:
    """Measures AUC and LogLoss of both models.

    Args:
        original: the captured model.
        compressed: what was made of it, packed or not, with the original's inputs or typed ones.
        evaluation: batches of (the original's inputs, labels), labels [rows] or [rows, columns], 0 or 1.

    Raises:
        PolicyError: the labels cannot be used, see :func:`afm_fx.measure.evaluation.labelled_rows`.
        BatchError: the inputs do not fit.
    """
    rows = labelled_rows(original, evaluation)
    converted = rows
    if compressed.original_inputs is not None:
        converted = replace(rows, inputs=tuple(compressed.convert_inputs(batch) for batch in rows.inputs))
    before, after = predicted_logits(original, rows), predicted_logits(compressed, converted)
    return QualityComparison(rows.rows, task_qualities(rows.labels, before, after))


def task_qualities(
    labels: NDArray[np.float64], before: NDArray[np.float64], after: NDArray[np.float64]
) -> tuple[TaskQuality, ...]:
    """Compares the logits of two models, all [rows, columns]."""
    return tuple(
        TaskQuality(
            auc(truth, one),
            auc(truth, other),
            auc_drop(truth, one, other),
            float(log_losses(truth, one).mean()),
            float(log_losses(truth, other).mean()),
            log_loss_rise(truth, one, other),
        )
        for truth, one, other in zip(labels.T, before.T, after.T, strict=True)
    )
