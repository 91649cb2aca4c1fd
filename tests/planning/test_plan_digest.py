"""A plan's digest is the same for plans that do the same, and another for any that does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import afm_fx
from passes.sites.drop_units import Units
from tests.graphs import Tower, tower_batch


@pytest.fixture(scope="module")
def plan() -> afm_fx.Plan:
    torch.manual_seed(3)
    program = afm_fx.capture(Tower().eval(), tower_batch(3))
    return afm_fx.make_plan(program, afm_fx.calibrate(program, [tower_batch(200)]), afm_fx.Fixed(2, 4))


def test_a_saved_plan_has_the_digest_of_the_one_in_memory(plan, tmp_path):
    plan.save(tmp_path / "plan")
    assert afm_fx.Plan.load(tmp_path / "plan").digest == plan.digest
    assert plan.digest.startswith("sha256:")
    assert len(plan.digest) == len("sha256:") + 64


def test_neither_the_order_of_tensors_nor_what_is_said_about_sites_counts(plan):
    other = replace(
        plan,
        factors=dict(reversed(plan.factors.items())),
        sites=tuple(replace(site, reason="another", kept_energy=0.0) for site in plan.sites),
        warnings=("one more",),
        policy={"kind": "another"},
    )
    assert other.digest == plan.digest


def _factor(plan: afm_fx.Plan, part: str) -> afm_fx.Plan:
    name = next(iter(plan.factors))
    tensor = getattr(plan.factors[name], part).clone()
    tensor.view(-1)[0] += 1e-12
    return replace(plan, factors={**plan.factors, name: replace(plan.factors[name], **{part: tensor})})


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: _factor(plan, "encoder"),
        lambda plan: _factor(plan, "decoder"),
        lambda plan: _factor(plan, "shift"),
        lambda plan: _factor(plan, "offset"),
        lambda plan: replace(plan, sites=(replace(plan.sites[0], name="other"), *plan.sites[1:])),
        lambda plan: replace(plan, sites=(replace(plan.sites[0], rank=1), *plan.sites[1:])),
        lambda plan: replace(plan, sites=plan.sites[1:]),
        lambda plan: replace(plan, units={"first": Units(torch.arange(3), torch.zeros(4).double())}),
    ],
)
def test_whatever_the_rewrite_reads_counts(plan, change):
    assert change(plan).digest != plan.digest
