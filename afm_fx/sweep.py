"""Sweeps: the same model under many budgets, measured, so that one can see what each costs and choose."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from afm_fx.basis import BasisKind
from afm_fx.benchmark import benchmark
from afm_fx.calibration import Statistics
from afm_fx.compression import apply_plan
from afm_fx.errors import PolicyError
from afm_fx.evaluation import LabelledBatch, LabelledRows, labelled_rows, predicted_logits
from afm_fx.inputs import Inputs
from afm_fx.onnx_export import export_onnx
from afm_fx.packing import pack
from afm_fx.plan import Plan
from afm_fx.planning import PlanningTask
from afm_fx.policies import Budget, choices_of, frontier_of, refined
from afm_fx.program import Program
from afm_fx.progress import track
from afm_fx.ranking_metrics import auc
from afm_fx.situation import Decision
from afm_fx.sweep_point import SweepPoint
from afm_fx.sweep_result import CONFIDENCE, Sweep
from afm_fx.worsening import auc_drop, log_losses

BUDGETS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02)
"""Shares of the parameters that are swept where none are named."""


def sweep(
    program: Program,
    statistics: Statistics,
    held_out: Iterable[Inputs],
    budgets: Sequence[float] = BUDGETS,
    *,
    evaluation: Iterable[LabelledBatch] | None = None,
    batch_size: int | None = None,
    threads: int = 1,
    seconds: float = 1.0,
) -> Sweep:
    """Plans a model under many budgets and measures each plan.

    All budgets share the errors measured on held-out rows and one walk of the frontier; each plan is the one that
    ``Budget`` alone would make.

    Args:
        program: the captured model.
        statistics: of this program.
        held_out: batches that the statistics have not seen, without labels; the first 4,096 rows are used.
        budgets: shares of the parameters, in (0, 1].
        evaluation: batches of (inputs, labels) to measure AUC and LogLoss on.
        batch_size: rows of a batch to time, None to time nothing. All models are exported packed and timed in turn.
        threads: threads to time with.
        seconds: timed calls of each model, about.

    Raises:
        PolicyError: no budget can be reached, or the evaluation cannot be used.
        CalibrationError: the statistics belong to another model, or there are no held-out rows.
        ExportError: a model that is to be timed cannot be exported.
    """
    policies = [Budget(parameters=budget) for budget in sorted(set(budgets), reverse=True)]
    batches = list(held_out)
    rows = None if evaluation is None else labelled_rows(program, evaluation)
    task = PlanningTask.of(program, statistics, BasisKind.MEASURED, batches, joins_tables=True)
    plans, smallest = _plans(task, policies)
    if not plans:
        raise PolicyError(f"none of these budgets can be reached: the smallest reachable share is {smallest:.4f}")
    programs = [program, *(apply_plan(program, plan) for plan in track(plans.values(), "Apply"))]
    points = [
        _point(budget, plan, made, program)
        for (budget, plan), made in zip([(1.0, None), *plans.items()], programs, strict=True)
    ]
    if rows is not None:
        points = _with_quality(points, programs, rows)
    if batch_size is not None:
        times = _times(programs, batches[0], batch_size, threads, seconds)
        points = [replace(point, p50_us=time) for point, time in zip(points, times, strict=True)]
    return Sweep(
        points[0], tuple(points[1:]), tuple(plans.values()),
        tuple(policy.share for policy in policies if policy.share not in plans), smallest, batch_size, threads,
        0 if rows is None else rows.rows,
    )  # fmt: skip


def _plans(task: PlanningTask, policies: Sequence[Budget]) -> tuple[dict[float, Plan], float]:
    """Plans by budget, largest first, without the unreachable; and the smallest share that can be reached."""
    situation = task.situation
    frontier, dense = frontier_of(situation), situation.dense_parameters
    cheapest = frontier.barest().cost
    reachable = [policy for policy in reversed(policies) if int(policy.share * dense) >= cheapest]
    plans: dict[float, Plan] = {}
    limits = [int(policy.share * dense) for policy in reachable]
    for policy, limit, fork in zip(reachable, limits, frontier.within(limits), strict=True):
        state = refined(situation, frontier, fork, limit)
        parameters = task.parameters({name: rank for name, rank in state.ranks.items() if rank is not None})
        if parameters > limit:  # what is left alone costs more than the ledger knew
            plans[policy.share] = task.plan(policy)
        else:
            decision = Decision(choices_of(situation, state))
            plans[policy.share] = task.finish(decision, parameters, policy.describe())
    return dict(reversed(plans.items())), cheapest / dense


def _point(budget: float, plan: Plan | None, made: Program, original: Program) -> SweepPoint:
    predicted, measured = (0.0, 0.0) if plan is None else (plan.predicted_logit_error, plan.logit_error)
    count = made.parameter_count()
    return SweepPoint(
        budget, count, count / original.parameter_count(), made.state_bytes(), predicted or 0.0, measured or 0.0
    )


def _with_quality(points: Sequence[SweepPoint], programs: Sequence[Program], rows: LabelledRows) -> list[SweepPoint]:
    logits = [predicted_logits(made, rows) for made in track(programs, "Evaluate")]
    result = []
    for point, after in zip(points, logits, strict=True):
        columns = list(zip(rows.labels.T, logits[0].T, after.T, strict=True))
        result.append(
            replace(
                point,
                auc=float(np.mean([auc(truth, scores) for truth, _, scores in columns])),
                auc_drop_bound=max(auc_drop(*column).bound(CONFIDENCE) for column in columns),
                log_loss=float(np.mean([log_losses(truth, scores).mean() for truth, _, scores in columns])),
            )
        )
    return result


def _times(programs: Sequence[Program], inputs: Inputs, batch_size: int, threads: int, seconds: float) -> list[float]:
    """p50 of every program, packed, in one interleaved run."""
    with tempfile.TemporaryDirectory() as directory:
        files = {str(place): Path(directory) / f"{place}.onnx" for place in range(len(programs))}
        for path, made in track(list(zip(files.values(), programs, strict=True)), "Export"):
            export_onnx(pack(made).program, path, check=False)
        result = benchmark(files, inputs, batch_sizes=(batch_size,), threads=threads, seconds=seconds)
    by_name = {timing.contender: timing.p50_us for timing in result.timings}
    return [by_name[name] for name in files]
