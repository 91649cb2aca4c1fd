"""Recovers one trained model at several budgets, and tunes the original in the same way as a control."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import afm_fx
from benchmarks.common import options
from benchmarks.common.ctr_models import ModelConfig
from benchmarks.common.results import RESULTS, Part, Table, result_files
from benchmarks.datasets import CtrDataset, EncodingConfig, Rows
from benchmarks.quality.comparison import CALIBRATION_ROWS, ORIGINAL, SENSITIVITY_ROWS, calibration_batches
from benchmarks.quality.paired_bootstrap import AucDifference, bootstrap_auc_differences
from benchmarks.quality.ranking_metrics import auc, log_loss
from benchmarks.quality.trained_model import trained_model
from benchmarks.quality.training import TrainingConfig, predict

BUDGETS = [0.2, 0.1, 0.0625]
COLUMNS = ("model", "parameters", "share", "AUC", "LogLoss", "AUC - original", "logit error", "trained", "seconds")
CONTROL = "original, tuned on the labels"
PLANNING_ROWS = 4_096
"""Validation rows on which the planner measures logit errors."""

COMPRESSED, WITHOUT_LABELS, WITH_LABELS = "compressed", "recovered without labels", "recovered with labels"


@dataclass(frozen=True)
class Schedule:
    """How the models of one experiment are recovered.

    Attributes:
        epochs: passes over the training rows with labels, for the control too.
        epochs_without_labels: passes over them without labels.
        batch_size: rows a step.
        seed: of the order of the batches.
    """

    epochs: int = 3
    epochs_without_labels: int = 5
    batch_size: int = 4096
    seed: int = 2024

    def options(self, *, labels: bool) -> dict[str, Any]:
        """The arguments of :func:`afm_fx.recover`."""
        return {
            "labels": labels,
            "epochs": self.epochs if labels else self.epochs_without_labels,
            "seed": self.seed,
        }


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


def recovery(
    *,
    dataset: options.Dataset,
    path: options.DataPath,
    model: options.ModelName,
    budget: options.Budgets = BUDGETS,
    rows: options.DataRows = None,
    max_epochs: options.MaxEpochs = 12,
    resamples: options.Resamples = 1000,
    seed: options.Seed = 2024,
    threads: options.Threads = None,
    checkpoint_dir: options.CheckpointDir = None,
    output_dir: options.OutputDir = RESULTS,
    tag: options.Tag = None,
    force: options.Force = False,
) -> None:
    """Train a model on public data, compress it, recover it without labels and with, and compare.

    The last line is the control: the original, tuned on the labels on the same schedule.
    """
    files = result_files(output_dir, "recovery", dataset, model, tag, force=force)
    trained = trained_model(
        dataset,
        path,
        model,
        rows=rows,
        encoding=EncodingConfig(seed=seed),
        config=ModelConfig(seed=seed),
        training=TrainingConfig(max_epochs, seed=seed),
        folder=checkpoint_dir,
        threads=threads,
    )
    schedule = Schedule(seed=seed)
    lines = experiment(trained.model, trained.data, budget, schedule, resamples=resamples, folder=checkpoint_dir)
    content = {**trained.content(), "schedule": schedule, "lines": lines}
    files.write(trained.title, [trained.description(), *parts(trained.data, lines)], content)


def experiment(
    model: nn.Module,
    dataset: CtrDataset,
    budgets: Sequence[float],
    schedule: Schedule,
    *,
    resamples: int,
    folder: Path | None = None,
) -> list[Line]:
    """Compresses to every budget and recovers with labels and without; the control comes last.

    Training rows train, validation rows are held out, test rows give the numbers.

    Args:
        resamples: of the bootstrap.
        folder: keeps every recovery's state, so that a run that was interrupted goes on, and a repeated one is quick.
    """
    program = afm_fx.capture(model, (dataset.train.inputs[:4],))
    rows = min(CALIBRATION_ROWS, len(dataset.train))
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


def parts(data: CtrDataset, lines: Sequence[Line]) -> list[Part]:
    """The page."""
    what = (
        f"{len(data.train):,} rows to train and recover on, {len(data.validation):,} to hold out, AUC and LogLoss on "
        f"{len(data.test):,} test rows; in brackets the 95 % interval of the paired difference. Logit error is that on "
        "the held-out rows. The last line is the control: the original, tuned on the labels on the same schedule."
    )
    schedules = dict.fromkeys(_schedule(line.recovery) for line in lines if line.recovery is not None)
    return [what, "\n".join(schedules), Table(COLUMNS, cells(lines))]


def _schedule(recovered: afm_fx.recovery.RecoveryReport) -> str:
    settings = recovered.settings
    weight = "without labels" if settings.label_weight is None else f"labels {settings.label_weight:.0%} of the loss"
    return f"- {weight}: {settings.epochs} epochs, Adam from {settings.learning_rate:g}."


def cells(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """One row of text per model, under ``COLUMNS``."""
    whole = lines[0].parameters
    return [
        (
            line.name,
            f"{line.parameters:,}",
            f"{line.parameters / whole:.1%}",
            f"{line.auc:.4f}",
            f"{line.log_loss:.4f}",
            str(line.to_original or ""),
            "" if line.logit_rmse is None else f"{line.logit_rmse:.3f}",
            "" if line.recovery is None else f"{line.recovery.parameters_trained:,}",
            "" if line.recovery is None else f"{line.recovery.seconds:.0f}",
        )
        for line in lines
    ]
