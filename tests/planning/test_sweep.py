"""A sweep's plans are those of the budgets alone, its numbers those of the programs, its files complete."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

import afm_fx
from afm_fx.errors import OutputExistsError, PolicyError, UserError
from afm_fx.program.logits import expose_logits
from tests.wide_and_deep import rows_of_ids, wide_and_deep

HELD_OUT = [rows_of_ids(300, seed=9)]
ROWS = rows_of_ids(1000, seed=21)
BUDGETS = (0.5, 0.3, 0.01)


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return wide_and_deep()


@pytest.fixture(scope="module")
def statistics(program: afm_fx.Program) -> afm_fx.Statistics:
    return afm_fx.calibrate(program, [rows_of_ids(800)])


@pytest.fixture(scope="module")
def clicks(program: afm_fx.Program) -> torch.Tensor:
    return (torch.rand(len(ROWS), generator=torch.Generator().manual_seed(1)) < program.run(ROWS)).float()


@pytest.fixture(scope="module")
def swept(program, statistics, clicks) -> afm_fx.planning.Sweep:
    return afm_fx.sweep(program, statistics, HELD_OUT, BUDGETS, evaluation=[(ROWS, clicks)])


def test_its_plans_are_those_of_the_budgets_alone(program, statistics, swept) -> None:
    assert [point.budget for point in swept.points] == [1.0, 0.5, 0.3]
    for point, plan in zip(swept.points[1:], swept.plans, strict=True):
        alone = afm_fx.make_plan(program, statistics, afm_fx.Budget(point.budget), held_out=HELD_OUT)
        assert plan.sites == alone.sites
        assert plan.policy == alone.policy
        assert (point.parameters, point.logit_rmse) == (alone.parameters_after, alone.logit_error)


def test_its_numbers_are_those_of_the_programs(program, clicks, swept) -> None:
    for point, plan in zip(swept.points, [None, *swept.plans], strict=True):
        made = program if plan is None else afm_fx.apply_plan(program, plan)
        assert point.parameters == made.parameter_count()
        before, after = (expose_logits(each)[0].run(HELD_OUT[0]).numpy() for each in (program, made))
        assert point.logit_rmse == pytest.approx(math.sqrt(np.square(before - after).mean()), abs=1e-9)
        assert point.auc == pytest.approx(roc_auc_score(clicks, expose_logits(made)[0].run(ROWS)))
        assert point.log_loss == pytest.approx(log_loss(clicks, made.run(ROWS)))
    assert swept.points[2].auc_drop_bound is not None
    assert swept.points[2].auc_drop_bound > swept.points[0].auc - swept.points[2].auc


def test_budgets_out_of_reach_are_named_with_the_smallest_share(program, statistics, swept) -> None:
    assert list(swept.unreachable) == [0.01]
    assert "a budget of 0.01 of" in swept.unreachable[0.01]
    assert "the smallest reachable is" in swept.table()
    with pytest.raises(PolicyError, match=r"none of these budgets can be reached: .* the smallest reachable is"):
        afm_fx.sweep(program, statistics, HELD_OUT, (0.01,))


def test_csv_holds_every_point(swept) -> None:
    rows = list(csv.DictReader(io.StringIO(swept.to_csv())))
    assert [float(row["share"]) for row in rows] == [point.share for point in swept.points]
    assert [float(row["auc"]) for row in rows] == [point.auc for point in swept.points]


def test_without_labels_nothing_is_said_of_them(program, statistics) -> None:
    swept = afm_fx.sweep(program, statistics, HELD_OUT, (0.3,))
    assert swept.points[1].auc is None
    assert "AUC" not in swept.table()
    assert [row["auc"] for row in csv.DictReader(io.StringIO(swept.to_csv()))] == ["", ""]


def test_the_picture_has_a_panel_for_everything_that_was_measured(swept, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    swept.plot(tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    assert text.count('id="axes_') == 2
    swept.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputExistsError):
        swept.plot(tmp_path / "sweep.png")
    with pytest.raises(UserError, match="should end in"):
        swept.plot(tmp_path / "sweep.bmp")
