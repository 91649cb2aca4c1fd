"""Plans for fresh checkpoints: nothing moves where nothing changed, tables are exact, and drift is told."""

from __future__ import annotations

import pytest
import torch

import afm_fx
from afm_fx.errors import PlanError
from tests.graphs import Tower, tower_batch
from tests.wide_and_deep import WIDTH, WideAndDeep, rows_of_ids, wide_and_deep

BATCHES = [rows_of_ids(500, seed=seed) for seed in range(4)]
HELD_OUT = [rows_of_ids(300, seed=9)]
BUDGET = afm_fx.Budget(parameters=0.4)


@pytest.fixture(scope="module")
def statistics() -> afm_fx.Statistics:
    return afm_fx.calibrate(wide_and_deep(), BATCHES, sensitivity_rows=2000)


@pytest.fixture(scope="module")
def plan(statistics: afm_fx.Statistics) -> afm_fx.Plan:
    return afm_fx.make_plan(wide_and_deep(), statistics, BUDGET, held_out=HELD_OUT)


def fresh(change: float) -> afm_fx.Program:
    """The same model, retrained a little."""
    program = wide_and_deep()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in program.graph_module.named_parameters():
            if name.startswith(("tables", "second")):
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(change * parameter.std() * noise)
    return program


@pytest.mark.parametrize("rows", [None, BATCHES])
def test_an_unchanged_checkpoint_keeps_its_factors(plan, statistics, rows) -> None:
    refit = afm_fx.refit_plan(wide_and_deep(), plan, statistics, rows)
    assert not refit.calibration_is_due
    for name, factor in plan.factors.items():
        found = refit.plan.factors[name]
        projection, wanted = found.decoder @ found.encoder, factor.decoder @ factor.encoder
        torch.testing.assert_close(projection, wanted, rtol=1e-5, atol=1e-5)
    for site in refit.drift:
        assert site.kept_by_old == pytest.approx(site.kept_now, abs=1e-6)


def test_tables_are_refitted_as_if_they_had_been_calibrated_again(statistics) -> None:
    program = fresh(0.5)
    plan = afm_fx.make_plan(wide_and_deep(), statistics, afm_fx.Fixed(embedding=2, linear=None), basis="afm")
    again = afm_fx.make_plan(
        program, afm_fx.calibrate(program, BATCHES), afm_fx.Fixed(embedding=2, linear=None), basis="afm"
    )
    refit = afm_fx.refit_plan(program, plan, statistics)
    assert len(refit.plan.factors) == 3
    for name, factor in again.factors.items():
        torch.testing.assert_close(refit.plan.factors[name].decoder, factor.decoder, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(refit.plan.factors[name].offset, factor.offset, rtol=1e-8, atol=1e-8)


def test_linears_are_refitted_on_rows_as_if_they_had_been_calibrated_again(statistics) -> None:
    program, policy = fresh(0.5), afm_fx.Fixed(embedding=None, linear=2)
    plan = afm_fx.make_plan(wide_and_deep(), statistics, policy, basis="gradient")
    expected = afm_fx.calibrate(program, BATCHES, sensitivity_rows=2000)
    again = afm_fx.make_plan(program, expected, policy, basis="gradient")
    without, given = (afm_fx.refit_plan(program, plan, statistics, rows) for rows in (None, iter(BATCHES)))
    assert given.plan.factors.keys() == again.factors.keys() != set()
    for name, factor in again.factors.items():
        torch.testing.assert_close(given.plan.factors[name].decoder, factor.decoder, rtol=1e-8, atol=1e-8)
        offset, stale = given.plan.factors[name].offset, without.plan.factors[name].offset
        torch.testing.assert_close(offset, factor.offset, rtol=1e-8, atol=1e-8)
        assert stale is not None
        assert factor.offset is not None
        assert not torch.allclose(stale, factor.offset, rtol=1e-3, atol=1e-3)


def test_a_refitted_plan_errs_less_on_the_fresh_checkpoint_than_the_old_one(plan, statistics) -> None:
    program = fresh(0.7)
    refit = afm_fx.refit_plan(program, plan, statistics, BATCHES)
    wanted = program.run(HELD_OUT[0])
    old, new = (
        float((afm_fx.apply_plan(program, each).run(HELD_OUT[0]) - wanted).square().mean())
        for each in (plan, refit.plan)
    )
    assert new < old
    drift = {site.name: site for site in refit.drift}
    assert drift["tables.0.joint"].kept_by_old < drift["tables.0.joint"].kept_now
    assert "tables.0.joint" in refit.table()


def test_features_that_became_wider_than_their_rank_ask_for_calibration(statistics) -> None:
    program = wide_and_deep()
    low = afm_fx.capture(_one_direction(), (rows_of_ids(4),)).to(torch.float64)
    plan = afm_fx.make_plan(low, afm_fx.calibrate(low, BATCHES), afm_fx.Fixed(embedding=1, linear=None), basis="afm")
    refit = afm_fx.refit_plan(program, plan, statistics)
    assert refit.calibration_is_due
    assert "calibrate again" in refit.table()


def _one_direction() -> torch.nn.Module:
    model = WideAndDeep().eval()
    with torch.no_grad():
        for table in model.tables:
            table.weight.copy_(torch.randn(len(table.weight), 1) * torch.ones(WIDTH))  # type: ignore[operator, arg-type]
    return model


def test_a_plan_of_another_model_is_refused(plan, statistics) -> None:
    other = afm_fx.capture(Tower(), tower_batch(4))
    with pytest.raises(PlanError):
        afm_fx.refit_plan(other, plan, statistics)


def test_tables_may_have_grown_and_nothing_else_may_have_changed_shape(statistics) -> None:
    program = wide_and_deep()
    plan = afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=2, linear=None), basis="afm")
    grown = WideAndDeep()
    for table in (*grown.tables, *grown.weights):
        added = torch.randn(5, table.weight.shape[1])
        table.weight = torch.nn.Parameter(torch.cat([table.weight, added]))
    larger = afm_fx.capture(grown.eval(), (rows_of_ids(4),)).to(torch.float64)
    refit = afm_fx.refit_plan(larger, plan, statistics)
    low_rank = afm_fx.apply_plan(larger, refit.plan)
    assert refit.plan.parameters_before == larger.parameter_count()
    assert low_rank.graph_module.get_parameter("tables.0.codes.weight").shape == (45, 2)
    with pytest.raises(PlanError, match=r"is \[40, 6\], in the plan \[45, 6\]"):
        afm_fx.refit_plan(program, refit.plan, statistics)
