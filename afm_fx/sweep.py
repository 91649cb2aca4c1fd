"""Sweeps: the same model under many budgets, measured, so that one can see what each costs and choose."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from afm_fx.basis import BasisKind
from afm_fx.budget import Budget
from afm_fx.calibration import Statistics
from afm_fx.compression import apply_plan
from afm_fx.errors import PolicyError
from afm_fx.evaluation import LabelledBatch, LabelledRows, labelled_rows, predicted_logits
from afm_fx.inputs import Inputs
from afm_fx.packing import pack
from afm_fx.plan import Plan
from afm_fx.planning import PlanningTask
from afm_fx.program import Program
from afm_fx.program_times import program_p50s_us
from afm_fx.progress import track
from afm_fx.quality_comparison import task_qualities
from afm_fx.sweep_plot import plot_sweep
from afm_fx.tables import render_table

BUDGETS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02)
"""Shares of the parameters that are swept where none are named."""

CONFIDENCE = 0.95
"""Of the bounds of AUC drops."""


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep.

    Attributes:
        budget: share of the parameters that was asked for; 1 for the original.
        parameters: that are left, before packing.
        share: of the original's parameters.
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
    predicted_logit_rmse: float
    logit_rmse: float
    auc: float | None = None
    auc_drop_bound: float | None = None
    log_loss: float | None = None
    p50_us: float | None = None


_COLUMNS: Mapping[str, tuple[str, str]] = {
    "budget": ("budget", "{:g}"),
    "parameters": ("parameters", "{:,}"),
    "share": ("share", "{:.2%}"),
    "predicted_logit_rmse": ("logit RMSE, predicted", "{:.4f}"),
    "logit_rmse": ("measured", "{:.4f}"),
    "auc": ("AUC", "{:.4f}"),
    "auc_drop_bound": ("AUC drop below", "{:.4f}"),
    "log_loss": ("LogLoss", "{:.4f}"),
    "p50_us": ("p50 us", "{:.1f}"),
}
"""Heading and format of every field of a point."""


@dataclass(frozen=True)
class Sweep:
    """What every budget costs.

    Attributes:
        points: the original, then the budgets' models, largest first.
        plans: of the latter.
        unreachable: budgets that no ranks reach, with the policy's reason, which names the smallest that they reach.
        batch_size: rows of a batch that was timed, None where nothing was.
        labelled_rows: rows with labels that AUC and LogLoss are of; 0 without.
    """

    points: tuple[SweepPoint, ...]
    plans: tuple[Plan, ...]
    unreachable: Mapping[float, str]
    batch_size: int | None = None
    labelled_rows: int = 0

    def table(self) -> str:
        """The sweep as text."""
        columns = {name: form for name, form in _COLUMNS.items() if getattr(self.points[0], name) is not None}
        rows = [[form.format(getattr(point, name)) for name, (_, form) in columns.items()] for point in self.points]
        rows[0][0] = "original"
        lines = [render_table("sweep", [heading for heading, _ in columns.values()], rows), *self.unreachable.values()]
        if self.labelled_rows:
            lines.append(
                f"AUC and LogLoss on {self.labelled_rows:,} labelled rows; bounds with {CONFIDENCE:.0%} confidence"
            )
        if self.batch_size is not None:
            lines.append(f"p50 packed in ONNX Runtime, batch size {self.batch_size:,}, one thread")
        return "\n".join(lines)

    def to_csv(self) -> str:
        """The points as CSV; empty cells for what was not measured."""
        sink = io.StringIO()
        writer = csv.DictWriter(sink, list(_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in self.points)
        return sink.getvalue()

    def plot(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Draws logit error, and whatever else was measured, over the parameters; see :mod:`afm_fx.sweep_plot`."""
        plot_sweep(self, Path(path), force=force)


def sweep(
    program: Program,
    statistics: Statistics,
    held_out: Iterable[Inputs],
    budgets: Sequence[float] = BUDGETS,
    *,
    evaluation: Iterable[LabelledBatch] | None = None,
    batch_size: int | None = None,
) -> Sweep:
    """Plans a model under many budgets and measures each plan; all share the errors measured on held-out rows.

    Args:
        program: the captured model.
        statistics: of this program.
        held_out: batches that the statistics have not seen, without labels; the first 4,096 rows are used.
        budgets: shares of the parameters, in (0, 1].
        evaluation: batches of (inputs, labels) to measure AUC and LogLoss on.
        batch_size: rows of a batch to time, None to time nothing. All models are exported packed and timed in turn, on
            one thread.

    Raises:
        PolicyError: no budget can be reached, or the evaluation cannot be used.
        CalibrationError: the statistics belong to another model, or there are no held-out rows.
        ExportError: a model that is to be timed cannot be exported.
    """
    policies = [Budget(parameters=budget) for budget in sorted(set(budgets), reverse=True)]
    batches = list(held_out)
    rows = None if evaluation is None else labelled_rows(program, evaluation)
    task = PlanningTask(program, statistics, BasisKind.MEASURED, batches, joins_tables=True)
    plans: dict[float, Plan] = {}
    unreachable: dict[float, str] = {}
    for policy in track(policies, "Plan"):
        try:
            plans[policy.share] = task.plan(policy)
        except PolicyError as error:
            unreachable[policy.share] = str(error)
    if not plans:
        raise PolicyError(f"none of these budgets can be reached: {'; '.join(unreachable.values())}")
    programs = [program, *(apply_plan(program, plan) for plan in track(plans.values(), "Apply"))]
    errors = [(1.0, 0.0, 0.0)]
    errors += [(share, plan.predicted_logit_error or 0.0, plan.logit_error or 0.0) for share, plan in plans.items()]
    counts = [made.parameter_count() for made in programs]
    points = [
        SweepPoint(budget, count, count / counts[0], predicted, measured)
        for (budget, predicted, measured), count in zip(errors, counts, strict=True)
    ]
    if rows is not None:
        points = _with_quality(points, programs, rows)
    if batch_size is not None:
        packed = [pack(made).program for made in track(programs, "Pack")]
        times = program_p50s_us(packed, batches[0], batch_size)
        points = [replace(point, p50_us=time) for point, time in zip(points, times, strict=True)]
    return Sweep(tuple(points), tuple(plans.values()), unreachable, batch_size, 0 if rows is None else rows.rows)


def _with_quality(points: Sequence[SweepPoint], programs: Sequence[Program], rows: LabelledRows) -> list[SweepPoint]:
    logits = [predicted_logits(made, rows) for made in track(programs, "Evaluate")]
    result = []
    for point, after in zip(points, logits, strict=True):
        tasks = task_qualities(rows.labels, logits[0], after)
        result.append(
            replace(
                point,
                auc=fmean(task.auc_after for task in tasks),
                auc_drop_bound=max(task.auc_drop.bound(CONFIDENCE) for task in tasks),
                log_loss=fmean(task.log_loss_after for task in tasks),
            )
        )
    return result
