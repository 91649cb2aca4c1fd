"""Recovers one trained model at several budgets, and tunes the original in the same way as a control."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import afm_fx
from benchmarks.datasets import CtrDataset, Rows
from benchmarks.paired_bootstrap import AucDifference, bootstrap_auc_differences
from benchmarks.quality_comparison import calibration_batches
from benchmarks.ranking_metrics import auc, log_loss
from benchmarks.training import predict

ORIGINAL = "original"
CONTROL = "original, tuned on the labels"
SENSITIVITY_ROWS, PLANNING_ROWS = 32_768, 4_096
"""Training rows whose gradients are taken, and validation rows on which the planner measures logit errors."""

COMPRESSED, WITHOUT_LABELS, WITH_LABELS = "compressed", "recovered without labels", "recovered with labels"


@dataclass(frozen=True)
class Schedule:
    """How the models of one experiment are recovered.

    Attributes:
        epochs: passes over the training rows with labels, for the control too.
        epochs_without_labels: passes over them without labels.
        learning_rate: of Adam at the first step; None for the default of :func:`afm_fx.recover`.
        label_weight: the labels' share of the loss; None for the default.
        batch_size: rows a step.
        seed: of the order of the batches.
    """

    epochs: int = 3
    epochs_without_labels: int = 5
    learning_rate: float | None = None
    label_weight: float | None = None
    batch_size: int = 4096
    seed: int = 2024

    def options(self, *, labels: bool) -> dict[str, Any]:
        """The arguments of :func:`afm_fx.recover`."""
        given = {"learning_rate": self.learning_rate, "label_weight": self.label_weight}
        epochs = self.epochs if labels else self.epochs_without_labels
        chosen = {name: value for name, value in given.items() if value is not None}
        return {"labels": labels, "epochs": epochs, "seed": self.seed, **chosen}


@dataclass(frozen=True)
class Line:
    """One model, measured on the test rows.

    Attributes:
        budget: share of the original's parameters, None for the original itself.
        stage: what was done to it.
        parameters: how many it has.
        auc: on the test rows.
        log_loss: in nats.
        to_original: its AUC minus the original's, paired; None for the original.
        logit_rmse: distance to the original's logits on the validation rows; None where nothing was trained.
        recovery: what was trained and how, None where nothing was.
    """

    budget: float | None
    stage: str
    parameters: int
    auc: float
    log_loss: float
    to_original: AucDifference | None
    logit_rmse: float | None = None
    recovery: afm_fx.recovery.RecoveryReport | None = None

    @property
    def name(self) -> str:
        """What the line is called."""
        return self.stage if self.budget is None else f"budget {self.budget:g}, {self.stage}"


@dataclass(frozen=True)
class _Contender:
    budget: float | None
    stage: str
    program: afm_fx.Program
    scores: NDArray[np.float64]
    recovery: afm_fx.recovery.RecoveryReport | None = None


def experiment(
    model: nn.Module,
    dataset: CtrDataset,
    budgets: Sequence[float],
    schedule: Schedule,
    *,
    calibration_rows: int,
    resamples: int,
    folder: Path | None = None,
) -> list[Line]:
    """Compresses to every budget and recovers with labels and without; the control comes last.

    Training rows train, validation rows are held out, test rows give the numbers.

    Args:
        calibration_rows: at most how many training rows calibrate.
        resamples: of the bootstrap.
        folder: keeps every recovery's state, so that a run that was interrupted goes on, and a repeated one is quick.
    """
    program = afm_fx.capture(model, (dataset.train.inputs[:4],))
    rows = min(calibration_rows, len(dataset.train))
    batches = calibration_batches(dataset.train, 0, rows)
    statistics = afm_fx.calibrate(program, batches, sensitivity_rows=SENSITIVITY_ROWS)
    unseen = [(dataset.validation.inputs[:PLANNING_ROWS],)]
    contenders = [_Contender(None, ORIGINAL, program, predict(program, dataset.test))]
    for budget in budgets:
        plan = afm_fx.make_plan(program, statistics, afm_fx.Budget(parameters=budget), held_out=unseen)
        low_rank = afm_fx.apply_plan(program, plan)
        contenders.append(_Contender(budget, COMPRESSED, low_rank, predict(low_rank, dataset.test)))
        for stage, labels in ((WITHOUT_LABELS, False), (WITH_LABELS, True)):
            report, recovered = _recover(low_rank, program, dataset, schedule, labels=labels, folder=folder)
            contenders.append(_Contender(budget, stage, recovered, predict(recovered, dataset.test), report))
    report, tuned = _recover(program, program, dataset, schedule, labels=True, folder=folder)
    contenders.append(_Contender(None, CONTROL, tuned, predict(tuned, dataset.test), report))
    return list(_lines(contenders, dataset.test, resamples, schedule.seed))


def _recover(
    low_rank: afm_fx.Program,
    teacher: afm_fx.Program,
    dataset: CtrDataset,
    schedule: Schedule,
    *,
    labels: bool,
    folder: Path | None,
) -> tuple[afm_fx.recovery.RecoveryReport, afm_fx.Program]:
    options = schedule.options(labels=labels)
    recovered = afm_fx.recover(
        low_rank,
        teacher,
        batches_of(dataset.train, schedule.batch_size, labels=labels),
        held_out=batches_of(dataset.validation, schedule.batch_size, labels=labels),
        trainable="all" if low_rank is teacher else "factors",
        checkpoint=None if folder is None else folder / _file_of(low_rank, options),
        **options,
    )
    return recovered.report, recovered.program


def _file_of(program: afm_fx.Program, options: dict[str, Any]) -> str:
    """A name that differs where the program given or the schedule does."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for parameter in program.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return f"recovery-{digest.hexdigest()[:16]}.pt"


def batches_of(rows: Rows, size: int, *, labels: bool) -> list[Any]:
    """Rows as batches of model inputs, or of pairs with their labels."""
    inputs = [(each,) for each in rows.inputs.split(size)]
    return list(zip(inputs, rows.labels.split(size), strict=True)) if labels else inputs


def _lines(contenders: Sequence[_Contender], test: Rows, resamples: int, seed: int) -> Iterator[Line]:
    labels = test.labels.numpy()
    scores = {str(place): contender.scores for place, contender in enumerate(contenders)}
    pairs = [(name, "0") for name in list(scores)[1:]]
    drawn = bootstrap_auc_differences(labels, scores, pairs, resamples=resamples, seed=seed)
    for contender, difference in zip(contenders, [None, *drawn], strict=True):
        report = contender.recovery
        yield Line(
            budget=contender.budget,
            stage=contender.stage,
            parameters=contender.program.parameter_count(),
            auc=auc(labels, contender.scores),
            log_loss=log_loss(labels, contender.scores),
            to_original=difference,
            logit_rmse=None if report is None else report.epochs[report.best].logit_rmse,
            recovery=report,
        )


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The lines as plain data."""
    return [asdict(line) for line in lines]
