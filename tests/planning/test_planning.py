"""Plans: errors that come true, files that survive, and models that are not the plan's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import afm_fx
from afm_fx.errors import (
    CalibrationError,
    CalibrationWarning,
    FileFormatError,
    OutputExistsError,
    PlanError,
    PolicyError,
)
from tests.calibration.test_calibration import features_of
from tests.graphs import Tower, plain_mlp, tower_batch

POLICY = afm_fx.Fixed(embedding=2, linear=3)


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    torch.manual_seed(3)
    return afm_fx.capture(Tower(hidden=24), tower_batch(4)).to(torch.float64)


@pytest.fixture(scope="module")
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(4)
    return [tower_batch(100) for _ in range(3)]


@pytest.fixture(scope="module")
def statistics(program, batches) -> afm_fx.Statistics:
    return afm_fx.calibrate(program, batches)


@pytest.mark.parametrize("basis", ["afm", "weight_svd"])
def test_predicted_error_equals_the_measured_one_on_the_calibration_rows(program, batches, statistics, basis) -> None:
    plan = afm_fx.make_plan(program, statistics, POLICY, basis=basis)
    features = features_of(program, *(torch.cat(parts) for parts in zip(*batches, strict=True)))
    assert len(plan.factors) == 5
    for site in plan.sites:
        factor, rows = plan.factors[site.name], features[site.name].detach()
        codes = rows @ factor.encoder.mT + (0 if factor.shift is None else factor.shift)
        measured = float((factor.decode(codes) - rows).square().sum(dim=1).mean())
        assert measured > 0
        assert site.predicted_error == pytest.approx(measured, rel=1e-8)


@pytest.mark.parametrize(("basis", "biases"), [("afm", 1), ("weight_svd", 0)])
def test_a_centre_costs_a_bias_where_the_linear_after_it_has_none_and_the_plan_counts_it(
    basis: str, biases: int
) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(30, 6), torch.nn.Linear(6, 5, bias=False), torch.nn.ReLU())
    ids = torch.randint(30, (200,))
    program = afm_fx.capture(model, ids)
    plan = afm_fx.make_plan(program, afm_fx.calibrate(program, [ids]), afm_fx.Fixed(2, None), basis=basis)
    made = afm_fx.apply_plan(program, plan).parameter_count()
    assert plan.parameters_after == made == 30 * 2 + 2 * 5 + biases * 5


def test_afm_errs_less_than_weight_svd_on_the_calibration_rows(program, statistics) -> None:
    afm = afm_fx.make_plan(program, statistics, POLICY)
    svd = afm_fx.make_plan(program, statistics, POLICY, basis="weight_svd")
    for ours, theirs in zip(afm.sites, svd.sites, strict=True):
        assert ours.predicted_error <= theirs.predicted_error * (1 + 1e-12)
    assert sum(site.predicted_error for site in afm.sites) < sum(site.predicted_error for site in svd.sites)


def test_features_that_lie_in_a_subspace_are_lost_nothing(program) -> None:
    model = Tower(hidden=24)
    with torch.no_grad():
        for table in model.looked_up():
            table.weight.copy_(torch.randn(table.num_embeddings, 2) @ torch.randn(2, table.embedding_dim) + 5)
    exact = afm_fx.capture(model, tower_batch(4)).to(torch.float64)
    plan = afm_fx.make_plan(exact, afm_fx.calibrate(exact, [tower_batch(100)]), afm_fx.Fixed(embedding=2, linear=None))
    batch = tower_batch(50)
    torch.testing.assert_close(afm_fx.apply_plan(exact, plan).run(batch), exact.run(batch), rtol=1e-6, atol=1e-6)


def test_fewer_rows_than_features_warns_and_works(program) -> None:
    thin = afm_fx.calibrate(program, [tower_batch(5)])
    with pytest.warns(CalibrationWarning, match="'first' saw 5 rows for 24 features"):
        plan = afm_fx.make_plan(program, thin, POLICY)
    assert len(plan.warnings) == 1
    assert "and too few for 'second'," in plan.warnings[0]
    batch = tower_batch(9)
    assert afm_fx.apply_plan(program, plan).run(batch).isfinite().all()


def test_one_row_is_refused(program) -> None:
    with pytest.raises(CalibrationError, match=r"of 1 row\(s\)"):
        afm_fx.make_plan(program, afm_fx.calibrate(program, [tower_batch(1)]), POLICY)


@pytest.mark.parametrize("given", [0.1, "fixed", None])
def test_something_else_than_a_policy_is_refused_with_what_one_looks_like(program, statistics, given: Any) -> None:
    with pytest.raises(PolicyError, match=r"a policy is afm_fx.Budget\(0\.[15]\), "):
        afm_fx.make_plan(program, statistics, given)
    with pytest.raises(PolicyError, match="a policy is"):
        afm_fx.compress(program, [tower_batch(5)], given)


def test_constant_features_are_kept_exactly() -> None:
    model = Tower()
    with torch.no_grad():
        for table in model.looked_up():
            table.weight.fill_(0.5)
    program = afm_fx.capture(model, tower_batch(4)).to(torch.float64)
    plan = afm_fx.make_plan(
        program, afm_fx.calibrate(program, [tower_batch(50)]), afm_fx.Fixed(embedding=1, linear=None)
    )
    batch = tower_batch(9)
    torch.testing.assert_close(afm_fx.apply_plan(program, plan).run(batch), program.run(batch), rtol=1e-10, atol=1e-10)


def test_the_input_program_is_left_untouched(program, statistics) -> None:
    text = str(program.graph_module.graph)
    state = {name: parameter.clone() for name, parameter in program.graph_module.named_parameters()}
    low_rank = afm_fx.apply_plan(program, afm_fx.make_plan(program, statistics, POLICY))
    assert low_rank.parameter_count() < program.parameter_count()
    assert str(program.graph_module.graph) == text
    assert all(torch.equal(parameter, state[name]) for name, parameter in program.graph_module.named_parameters())


def test_a_plan_survives_the_file_and_applies_in_the_same_way(program, statistics, tmp_path: Path) -> None:
    plan = afm_fx.make_plan(program, statistics, afm_fx.Budget(parameters=0.5))
    path = tmp_path / "plan.safetensors"
    plan.save(path)
    loaded = afm_fx.Plan.load(path)
    assert loaded.sites == plan.sites
    assert loaded.policy == {"policy": "Budget", "parameters": 0.5}
    batch = tower_batch(9)
    assert torch.equal(afm_fx.apply_plan(program, loaded).run(batch), afm_fx.apply_plan(program, plan).run(batch))
    with pytest.raises(OutputExistsError):
        plan.save(path)
    plan.save(path, force=True)


def test_a_damaged_plan_or_another_file_is_refused(program, statistics, tmp_path: Path) -> None:
    path = tmp_path / "plan.safetensors"
    afm_fx.make_plan(program, statistics, POLICY).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match="truncated"):
        afm_fx.Plan.load(path)
    path.write_bytes(b"PK\x03\x04 not a plan")
    with pytest.raises(FileFormatError, match="not a plan"):
        afm_fx.Plan.load(path)
    statistics.save(tmp_path / "statistics.safetensors")
    with pytest.raises(FileFormatError, match="holds statistics, not a plan"):
        afm_fx.Plan.load(tmp_path / "statistics.safetensors")


def test_a_plan_for_another_model_or_checkpoint_is_refused(program, statistics) -> None:
    plan = afm_fx.make_plan(program, statistics, POLICY)
    other = afm_fx.capture(plain_mlp(), torch.randn(3, 4))
    with pytest.raises(PlanError, match=r"another model: it knows embedding site 'tables\.0'"):
        afm_fx.apply_plan(other, plan)
    wider = afm_fx.capture(Tower(hidden=30), tower_batch(4))
    with pytest.raises(PlanError, match=r"another checkpoint: 'first' is \[30, 23\], in the plan \[24, 23\]"):
        afm_fx.apply_plan(wider, plan)


def test_statistics_of_another_model_are_refused(program) -> None:
    other = afm_fx.capture(Tower(hidden=30), tower_batch(4))
    with pytest.raises(CalibrationError, match="another model: site 'first' has 24 features, they have 30"):
        afm_fx.make_plan(program, afm_fx.calibrate(other, [tower_batch(50)]), POLICY)


def test_an_unknown_basis_is_refused(program, statistics) -> None:
    with pytest.raises(PolicyError, match="there is no basis 'pca'"):
        afm_fx.make_plan(program, statistics, POLICY, basis="pca")


def test_the_table_shows_every_site(program, statistics) -> None:
    plan = afm_fx.make_plan(program, statistics, POLICY)
    text = plan.table()
    for site in plan.sites:
        assert site.name in text
    assert "refused" in text
    assert f"{plan.parameters_after:,}" in text
    assert dataclasses.asdict(plan.sites[0])["rank"] == 2
