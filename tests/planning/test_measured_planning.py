"""Plans by measured logit error: which basis won, what is joined, what left, and that the numbers come true."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import afm_fx
from afm_fx.errors import PlanError, PolicyError
from afm_fx.planning.constant_units import constant_units
from afm_fx.program.logits import expose_logits
from tests.graphs import Tower, tower_batch
from tests.wide_and_deep import DEAD, HIDDEN, rows_of_ids, wide_and_deep

HELD_OUT = [rows_of_ids(300, seed=9)]


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return wide_and_deep()


@pytest.fixture(scope="module")
def statistics(program: afm_fx.Program) -> afm_fx.Statistics:
    return afm_fx.calibrate(program, [rows_of_ids(500, seed=seed) for seed in range(4)], sensitivity_rows=2000)


@pytest.fixture(scope="module")
def plan(program: afm_fx.Program, statistics: afm_fx.Statistics) -> afm_fx.Plan:
    return afm_fx.make_plan(program, statistics, afm_fx.Budget(parameters=0.4), held_out=HELD_OUT)


def logit_rmse(program: afm_fx.Program, low_rank: afm_fx.Program) -> float:
    before, after = (expose_logits(each)[0].run(HELD_OUT[0]) for each in (program, low_rank))
    return math.sqrt(float((before - after).square().mean()))


def test_the_error_that_the_plan_states_is_that_of_the_program_it_makes(program, plan) -> None:
    low_rank = afm_fx.apply_plan(program, plan)
    assert plan.logit_error == pytest.approx(logit_rmse(program, low_rank), rel=1e-6)
    assert low_rank.parameter_count() == plan.parameters_after <= 0.4 * program.parameter_count()


def test_every_site_has_the_basis_that_erred_least(plan) -> None:
    factored = [site for site in plan.sites if site.rank is not None]
    assert factored
    for site in factored:
        assert site.logit_errors[site.basis] == min(site.logit_errors.values())
    tried = set[str]().union(*(site.logit_errors for site in factored))
    assert tried >= {"gradient", "afm", "weight_svd", "consumer", "gradient+afm", "gradient+consumer"}


def test_tables_of_one_index_get_one_code_and_constant_units_leave(plan) -> None:
    joint = [site for site in plan.sites if site.tables]
    assert [site.tables for site in joint] == [(f"tables.{field}", f"weights.{field}") for field in range(3)]
    assert len(plan.units["first"].dropped) >= DEAD
    shapes = {site.name: site.shape for site in plan.sites}
    assert shapes["first"][0] == len(plan.units["first"].kept)


def test_it_errs_less_than_one_basis_for_all_at_the_same_size(program, statistics, plan) -> None:
    for basis in ("afm", "weight_svd"):
        other = afm_fx.make_plan(program, statistics, afm_fx.Budget(parameters=0.4), basis=basis)
        assert plan.logit_error is not None
        assert plan.logit_error < logit_rmse(program, afm_fx.apply_plan(program, other))


def test_at_fixed_ranks_each_site_takes_its_best_basis(program, statistics) -> None:
    policy = afm_fx.Fixed(embedding=2, linear=4, overrides={"second": 3})
    measured = afm_fx.make_plan(program, statistics, policy, held_out=HELD_OUT)
    assert {site.name: site.rank for site in measured.sites} == {
        "tables.0": 2, "tables.1": 2, "tables.2": 2, "first": 4, "second": 3,
    }  # fmt: skip
    afm = afm_fx.make_plan(program, statistics, policy, basis="afm")
    assert measured.logit_error is not None
    assert measured.logit_error < logit_rmse(program, afm_fx.apply_plan(program, afm))


def test_full_rank_changes_nothing_and_measures_nothing(program, statistics) -> None:
    plan = afm_fx.make_plan(program, statistics, afm_fx.FullRank(), held_out=HELD_OUT)
    assert plan.logit_error is None
    assert not plan.units
    assert logit_rmse(program, afm_fx.apply_plan(program, plan)) < 1e-10


def test_a_saved_plan_makes_the_same_program(program, plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.safetensors")
    loaded = afm_fx.Plan.load(tmp_path / "plan.safetensors")
    assert loaded.sites == plan.sites
    assert loaded.logit_error == plan.logit_error
    one, other = (afm_fx.apply_plan(program, each) for each in (plan, loaded))
    assert torch.equal(one.run(HELD_OUT[0]), other.run(HELD_OUT[0]))


def test_a_plan_with_units_or_joint_tables_of_another_model_is_refused(plan) -> None:
    other = afm_fx.capture(Tower(), tower_batch(4))
    with pytest.raises(PlanError):
        afm_fx.apply_plan(other, plan)


def test_saved_statistics_give_the_same_plan(program, statistics, plan, tmp_path: Path) -> None:
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = afm_fx.Statistics.load(tmp_path / "statistics.safetensors")
    again = afm_fx.make_plan(program, loaded, afm_fx.Budget(parameters=0.4), held_out=HELD_OUT)
    assert [(site.name, site.rank, site.basis) for site in again.sites] == [
        (site.name, site.rank, site.basis) for site in plan.sites
    ]


def test_predicted_errors_order_plans_as_measured_ones_do(program, statistics) -> None:
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(12):
        ranks = {f"tables.{field}": int(generator.integers(1, 6)) for field in range(3)}
        ranks |= {"first": int(generator.integers(2, 10)), "second": int(generator.integers(2, 10))}
        policy = afm_fx.Fixed(embedding=None, linear=None, overrides=ranks)
        found = afm_fx.make_plan(program, statistics, policy, held_out=HELD_OUT)
        pairs.append((found.predicted_logit_error, found.logit_error))
    predicted, measured = (np.argsort(np.argsort(column)) for column in zip(*pairs, strict=True))
    assert np.corrcoef(predicted, measured)[0, 1] > 0.8


def test_measuring_needs_rows_and_gradient_bases_need_gradients(program) -> None:
    without = afm_fx.calibrate(program, [rows_of_ids(200)])
    with pytest.raises(PolicyError, match="held_out"):
        afm_fx.make_plan(program, without, afm_fx.Budget(parameters=0.4), basis="measured")
    with pytest.raises(afm_fx.errors.CalibrationError, match="sensitivity_rows"):
        afm_fx.make_plan(program, without, afm_fx.Budget(parameters=0.4), basis="gradient")
    measured = afm_fx.make_plan(program, without, afm_fx.Budget(parameters=0.4), held_out=HELD_OUT)
    assert {site.basis for site in measured.sites if site.rank is not None} <= {"afm", "weight_svd"}


def test_units_that_matter_stay_even_where_they_hardly_vary(program, statistics) -> None:
    assert set(constant_units(program, statistics, HELD_OUT)["first"].dropped.tolist()) >= set(range(DEAD))
    model = Tower(hidden=HIDDEN)
    with torch.no_grad():
        model.first.weight[0] *= 1e-4
        model.first.bias[0] = 1.0
        model.second.weight[:, 0] *= 1e5
    tower = afm_fx.capture(model, tower_batch(4)).to(torch.float64)
    units = constant_units(tower, afm_fx.calibrate(tower, [tower_batch(200)]), [tower_batch(100)])
    assert "first" not in units or 0 not in units["first"].dropped
