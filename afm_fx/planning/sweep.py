"""Sweeps: the same model under many budgets, measured, so that one can see what each costs and choose."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from afm_fx.calibration import Statistics
from afm_fx.errors import MissingPackageError, PolicyError, UserError
from afm_fx.io import render_table, staged_file, track
from afm_fx.measure import LabelledBatch, labelled_rows, predicted_logits, task_qualities
from afm_fx.planning.apply_plan import apply_plan
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.budget import Budget
from afm_fx.planning.plan import Plan
from afm_fx.planning.planning import PlanningTask
from afm_fx.planning.tolerance import CONFIDENCE
from afm_fx.program import Inputs, Program, require_program

BUDGETS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02)
"""Shares of the parameters that are swept where none are named."""

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class SweepPoint:
    """One model of a sweep.

    Attributes:
        budget: share of the parameters that was asked for; 1 for the original.
        parameters: that are left, before packing.
        share: of the original's parameters.
        logit_rmse: root mean squared logit error of the whole model on held-out rows.
        auc: on the labelled rows (mean over the columns), None without labels.
        auc_drop_bound: upper 95 % bound of the original's AUC minus this one's (the worst column), None without labels.
        log_loss: on the labelled rows, in nats (mean over the columns), None without labels.
    """

    budget: float
    parameters: int
    share: float
    logit_rmse: float
    auc: float | None = None
    auc_drop_bound: float | None = None
    log_loss: float | None = None


_COLUMNS: Mapping[str, tuple[str, str]] = {
    "budget": ("budget", "{:g}"),
    "parameters": ("parameters", "{:,}"),
    "share": ("share", "{:.2%}"),
    "logit_rmse": ("logit RMSE", "{:.4f}"),
    "auc": ("AUC", "{:.4f}"),
    "auc_drop_bound": ("AUC drop below", "{:.4f}"),
    "log_loss": ("LogLoss", "{:.4f}"),
}
"""Heading and format of every field of a point."""


@dataclass(frozen=True)
class Sweep:
    """What every budget costs.

    Attributes:
        points: the original, then the budgets' models, largest first.
        plans: of the latter.
        unreachable: budgets that no ranks reach, with the policy's reason, which names the smallest that they reach.
        labelled_rows: rows with labels that AUC and LogLoss are of; 0 without.
    """

    points: tuple[SweepPoint, ...]
    plans: tuple[Plan, ...]
    unreachable: Mapping[float, str]
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
        return "\n".join(lines)

    def to_csv(self) -> str:
        """The points as CSV; empty cells for what was not measured."""
        sink = io.StringIO()
        writer = csv.DictWriter(sink, list(_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in self.points)
        return sink.getvalue()

    def plot(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Draws logit error, and AUC where there are labels, over the parameters left: smaller models to the right.

        Args:
            path: a PNG, SVG or PDF by its ending.

        Raises:
            MissingPackageError: matplotlib is not installed (the extra ``plot``).
            OutputExistsError: the path exists and ``force`` is not set.
            UserError: the ending is none of these.
        """
        if Path(path).suffix.lower() not in PICTURES:
            raise UserError(f"'{path}' should end in {', '.join(PICTURES)}")
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import
        except ImportError as error:
            raise MissingPackageError("a picture needs matplotlib: install afm-fx[plot]") from error
        titles = {"logit_rmse": "Logit error on held-out rows (RMSE)"}
        if self.labelled_rows:
            titles["auc"] = "AUC on labelled rows"
        original, *points = self.points
        shares = [point.share for point in points]
        figure = Figure(figsize=(4.6 * len(titles), 3.8), layout="constrained", dpi=150)
        for panel, (name, title) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True):
            panel.plot(shares, [getattr(point, name) for point in points], "o-")
            panel.axhline(getattr(original, name), color="grey", linestyle="--", label="original")
            panel.set(title=title, xscale="log", xlabel="parameters left, share of the original")
            panel.invert_xaxis()
            panel.set_xticks(shares, [f"{share * 100:.2g}%" for share in shares])  # ticks at the models that there are
            panel.set_xticks([], minor=True)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend()
        with staged_file(Path(path), force=force) as staged:
            figure.savefig(staged)


def sweep(
    program: Program,
    statistics: Statistics,
    held_out: Iterable[Inputs],
    budgets: Sequence[float] = BUDGETS,
    *,
    evaluation: Iterable[LabelledBatch] | None = None,
) -> Sweep:
    """Plans a model under many budgets and measures each plan; all share the errors measured on held-out rows.

    Args:
        program: the captured model.
        statistics: of this program.
        held_out: batches that the statistics have not seen, without labels; the first 4,096 rows are used.
        budgets: shares of the parameters, in (0, 1].
        evaluation: batches of (inputs, labels) to measure AUC and LogLoss on.

    Raises:
        PolicyError: no budget can be reached, or the evaluation cannot be used.
        CalibrationError: the statistics belong to another model, or there are no held-out rows.
    """
    require_program(program, "afm_fx.sweep")
    policies = [Budget(parameters=budget) for budget in sorted(set(budgets), reverse=True)]
    rows = None if evaluation is None else labelled_rows(program, evaluation)
    before = None if rows is None else predicted_logits(program, rows)
    task = PlanningTask(program, statistics, BasisKind.MEASURED, list(held_out), joins_tables=True)
    total = program.parameter_count()

    def measured(budget: float, made: Program, logit_rmse: float) -> SweepPoint:
        quality: tuple[float, ...] = ()
        if rows is not None and before is not None:
            quality = _quality(rows.labels, before, before if made is program else predicted_logits(made, rows))
        return SweepPoint(budget, made.parameter_count(), made.parameter_count() / total, logit_rmse, *quality)

    points = [measured(1.0, program, 0.0)]
    plans: list[Plan] = []
    unreachable: dict[float, str] = {}
    for policy in track(policies, "Sweep"):
        try:
            plan = task.plan(policy)
        except PolicyError as error:
            unreachable[policy.share] = str(error)
            continue
        plans.append(plan)
        points.append(measured(policy.share, apply_plan(program, plan), plan.logit_error or 0.0))
    if not plans:
        raise PolicyError(f"none of these budgets can be reached: {'; '.join(unreachable.values())}")
    return Sweep(tuple(points), tuple(plans), unreachable, 0 if rows is None else rows.rows)


def _quality(
    labels: NDArray[np.float64], before: NDArray[np.float64], after: NDArray[np.float64]
) -> tuple[float, float, float]:
    """AUC, the bound of its drop, and LogLoss."""
    tasks = task_qualities(labels, before, after)
    return (
        fmean(task.auc_after for task in tasks),
        max(task.auc_drop.bound(CONFIDENCE) for task in tasks),
        fmean(task.log_loss_after for task in tasks),
    )
