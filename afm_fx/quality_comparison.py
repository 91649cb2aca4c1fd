"""How well a compressed model predicts, beside the original, on rows with labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from afm_fx.evaluation import LabelledBatch, labelled_rows, predicted_logits
from afm_fx.program import Program
from afm_fx.worsening import Worsening, auc, auc_drop, log_loss_rise, log_losses


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
        PolicyError: the labels cannot be used, see :func:`afm_fx.evaluation.labelled_rows`.
        BatchError: the inputs do not fit.
    """
    rows = labelled_rows(original, evaluation)
    converted = rows
    if compressed.original_inputs is not None:
        converted = replace(rows, inputs=tuple(compressed.convert_inputs(batch) for batch in rows.inputs))
    logits = predicted_logits(original, rows), predicted_logits(compressed, converted)
    return QualityComparison(
        rows.rows,
        tuple(
            TaskQuality(
                auc(labels, before),
                auc(labels, after),
                auc_drop(labels, before, after),
                float(log_losses(labels, before).mean()),
                float(log_losses(labels, after).mean()),
                log_loss_rise(labels, before, after),
            )
            for labels, before, after in zip(rows.labels.T, logits[0].T, logits[1].T, strict=True)
        ),
    )
