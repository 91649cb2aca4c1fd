"""Tolerances are kept by the program that the plan makes, with as few parameters as the search can find."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import afm_fx
from afm_fx.errors import BatchError, PolicyError
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.planning import PlanningTask
from afm_fx.planning.tolerance import CLOSE, GROWTH, smallest_passing
from afm_fx.program.logits import expose_logits
from tests.wide_and_deep import rows_of_ids, wide_and_deep

HELD_OUT = [rows_of_ids(300, seed=9)]
ROWS = rows_of_ids(4000, seed=21)


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return wide_and_deep()


@pytest.fixture(scope="module")
def task(program: afm_fx.Program) -> PlanningTask:
    statistics = afm_fx.calibrate(program, [rows_of_ids(500, seed=seed) for seed in range(3)])
    return PlanningTask(program, statistics, BasisKind.MEASURED, HELD_OUT, joins_tables=True)


@pytest.fixture(scope="module")
def labelled(program: afm_fx.Program) -> list[tuple[torch.Tensor, torch.Tensor]]:
    clicks = torch.rand(len(ROWS), generator=torch.Generator().manual_seed(1)) < program.run(ROWS)
    return [(ROWS[start : start + 1500], clicks[start : start + 1500].float()) for start in (0, 1500, 3000)]


def logits(program: afm_fx.Program, rows: torch.Tensor) -> np.ndarray:
    return expose_logits(program)[0].run(rows).numpy()


def share(plan: afm_fx.Plan) -> float:
    return plan.parameters_after / plan.parameters_before


def test_the_logit_error_of_the_program_made_is_within_the_tolerance_and_near_it(program, task) -> None:
    plan = task.plan(afm_fx.Tolerance(logit_rmse=0.3))
    low_rank = afm_fx.apply_plan(program, plan)
    error = math.sqrt(np.square(logits(low_rank, HELD_OUT[0]) - logits(program, HELD_OUT[0])).mean())
    assert 0.15 < error <= 0.3
    (evidence,) = plan.evidence
    assert evidence.measured == pytest.approx(error, rel=1e-6)
    assert plan.parameters_after == low_rank.parameter_count() < 0.8 * plan.parameters_before
    assert share(task.plan(afm_fx.Tolerance(logit_rmse=0.1))) > share(plan)


def test_the_auc_drop_is_within_the_tolerance_with_its_confidence_bound(program, task, labelled, tmp_path) -> None:
    policy = afm_fx.Tolerance(auc_drop=0.02, evaluation=labelled)
    plan = task.plan(policy)
    clicks = torch.cat([labels for _, labels in labelled]).numpy()
    low_rank = afm_fx.apply_plan(program, plan)
    before, after = (roc_auc_score(clicks, logits(each, ROWS)) for each in (program, low_rank))
    (evidence,) = plan.evidence
    assert evidence.measured == pytest.approx(before - after, abs=1e-9)
    assert evidence.bound is not None
    assert evidence.measured < evidence.bound <= 0.02
    assert (evidence.rows, evidence.confidence) == (4000, 0.95)
    assert share(plan) < 0.8
    assert "with 95% confidence" in plan.table()
    assert json.loads(json.dumps(policy.describe())) == {"policy": "Tolerance", "auc_drop": 0.02, "confidence": 0.95}
    plan.save(Path(tmp_path) / "plan.safetensors")
    assert afm_fx.Plan.load(Path(tmp_path) / "plan.safetensors").evidence == plan.evidence


def test_fewer_rows_or_more_confidence_make_a_larger_model(task, labelled) -> None:
    def planned(**given: Any) -> float:
        return share(task.plan(afm_fx.Tolerance(logloss_rise=0.01, **given)))

    plain = planned(evaluation=labelled)
    fewer = [(ids[::6], clicks[::6]) for ids, clicks in labelled]
    assert 0.9 > planned(evaluation=fewer, confidence=0.99) > plain


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ([], "no batches"),
        ([(ROWS[:9], None)], "evaluation batch 0: the labels are a NoneType, no tensor"),
        ([ROWS[:9]], "evaluation batch 0: .*batches are pairs"),
        ([(ROWS[:9], torch.ones(9))], "all 9 labels"),
        ([(ROWS[:9], torch.ones(8))], r"evaluation batch 0: the labels have shape \[8\], they must be \[9\]"),
        ([(ROWS[:2], torch.tensor([0.0, 0.5]))], r"row 1 of the evaluation has \[0.5\]"),
        ([(ROWS[:2], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))], "predicts 1 numbers a row, the evaluation has 2"),
    ],
)
def test_an_evaluation_that_cannot_be_used_is_refused(task, evaluation, message: str) -> None:
    error = BatchError if message.startswith("evaluation batch") else PolicyError
    with pytest.raises(error, match=message):
        task.plan(afm_fx.Tolerance(auc_drop=0.01, evaluation=evaluation))


def test_a_logit_tolerance_needs_measured_errors(program) -> None:
    statistics = afm_fx.calibrate(program, [rows_of_ids(200)])
    with pytest.raises(PolicyError, match="held-out rows"):
        afm_fx.make_plan(program, statistics, afm_fx.Tolerance(logit_rmse=0.1))


def test_less_than_rounding_is_refused_whatever_the_machine_rounds_to(task) -> None:
    logits = task.errors.simulation.original
    spacing = float(logits.double().square().mean().sqrt()) * torch.finfo(logits.dtype).eps
    with pytest.raises(PolicyError, match=re.escape(f"differ by {spacing:.2g} in their last digit")):
        task.plan(afm_fx.Tolerance(logit_rmse=0.9 * spacing))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"logit_rmse": 0.1, "auc_drop": 0.1},
        {"auc_drop": 0.1},
        {"logit_rmse": 0.1, "evaluation": []},
        {"logit_rmse": -0.1},
        {"logloss_rise": 0.1, "evaluation": [], "confidence": 1.0},
    ],
)
def test_nonsense_is_refused_on_construction(given) -> None:
    with pytest.raises(PolicyError):
        afm_fx.Tolerance(**given)


@pytest.mark.parametrize("threshold", [0, 100, 101, 300, 1111, 1990, 2000])
def test_the_smallest_limit_that_passes_is_found_within_the_resolution_by_few_tests(threshold: int) -> None:
    tested: list[float] = []

    def passes(limit: float) -> bool:
        tested.append(limit)
        return limit >= threshold

    found = smallest_passing(100, 2000, passes)
    assert found is not None
    assert max(100, threshold) <= found <= max(100, CLOSE * threshold)
    assert len(tested) <= 20
    assert max(tested) <= min(2000, max(100, GROWTH * threshold))


def test_where_no_limit_passes_none_is_returned_and_what_is_returned_has_passed() -> None:
    assert smallest_passing(100, 2000, lambda limit: limit > 2000) is None
    found = smallest_passing(100, 2000, lambda limit: int(limit) % 7 == 3)
    assert found is not None
    assert int(found) % 7 == 3
