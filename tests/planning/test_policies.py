"""Policies: the ranks they pick, what they leave alone and say so, and what they refuse."""

from __future__ import annotations

import pytest
import torch

import afm_fx
from afm_fx.errors import PolicyError
from tests.graphs import Tower, tower_batch

Known = tuple[afm_fx.Program, afm_fx.Statistics]


@pytest.fixture(scope="module")
def known() -> Known:
    torch.manual_seed(3)
    program = afm_fx.capture(Tower(hidden=24), tower_batch(4))
    return program, afm_fx.calibrate(program, [tower_batch(200) for _ in range(3)])


def make(known: Known, policy: afm_fx.planning.Policy) -> afm_fx.Plan:
    return afm_fx.make_plan(known[0], known[1], policy)


def planned(known: Known, policy: afm_fx.planning.Policy) -> afm_fx.Plan:
    plan = make(known, policy)
    low_rank = afm_fx.apply_plan(known[0], plan)
    assert low_rank.parameter_count() == plan.parameters_after
    return plan


def ranks(plan: afm_fx.Plan) -> dict[str, int | None]:
    return {site.name: site.rank for site in plan.sites}


def test_full_rank_takes_every_site_at_its_width(known) -> None:
    plan = planned(known, afm_fx.FullRank())
    assert ranks(plan) == {"tables.0": 6, "tables.1": 7, "tables.2": 8, "first": 24, "second": 24}


def test_fixed_takes_one_rank_per_kind_and_overrides_by_name(known) -> None:
    plan = planned(known, afm_fx.Fixed(embedding=2, linear=3, overrides={"tables.1": 4, "second.weight": None}))
    assert ranks(plan) == {"tables.0": 2, "tables.1": 4, "tables.2": 2, "first": 3, "second": None}
    assert next(site.reason for site in plan.sites if site.name == "second") == "left alone by override"


def test_fixed_leaves_a_kind_alone(known) -> None:
    plan = planned(known, afm_fx.Fixed(embedding=None, linear=2))
    assert ranks(plan) == {"tables.0": None, "tables.1": None, "tables.2": None, "first": 2, "second": 2}


def test_fixed_leaves_alone_and_reports_what_is_narrower_or_past_break_even(known) -> None:
    plan = planned(known, afm_fx.Fixed(embedding=7, linear=13))
    assert ranks(plan) == {"tables.0": None, "tables.1": None, "tables.2": 7, "first": None, "second": None}
    reasons = {site.name: site.reason for site in plan.sites}
    assert reasons["tables.0"] == "6 features are no more than rank 7"
    assert "past break-even" in reasons["second"]


def test_energy_takes_the_smallest_sufficient_rank(known) -> None:
    plan = planned(known, afm_fx.Energy(0.6))
    for site in plan.sites:
        if site.rank is not None:
            assert site.kept_energy >= 0.6
            factor = make(known, afm_fx.Fixed(None, None, {site.name: max(site.rank - 1, 1)})).sites
            fewer = next(other for other in factor if other.name == site.name)
            assert site.rank == 1 or fewer.rank is None or fewer.kept_energy < 0.6
    assert any(site.rank is not None for site in plan.sites)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9, 1.0])
def test_budget_is_kept_and_used(known, fraction: float) -> None:
    plan = planned(known, afm_fx.Budget(parameters=fraction))
    limit = fraction * known[0].parameter_count()
    assert plan.parameters_after <= limit
    largest_step = 24 + 24 + 1
    assert plan.parameters_after > limit - 2 * largest_step


def test_more_budget_keeps_more_energy(known) -> None:
    kept = [sum(site.kept_energy for site in planned(known, afm_fx.Budget(f)).sites) for f in (0.3, 0.5, 0.7, 1.0)]
    assert kept == sorted(kept)
    assert kept[-1] == pytest.approx(5.0)


def test_a_budget_out_of_reach_says_the_smallest_reachable_which_is_reachable(known) -> None:
    with pytest.raises(PolicyError, match="the smallest reachable is") as caught:
        make(known, afm_fx.Budget(parameters=0.01))
    smallest = int(str(caught.value).rpartition("(")[2].split()[0].replace(",", ""))
    plan = planned(known, afm_fx.Budget(parameters=(smallest + 0.5) / known[0].parameter_count()))
    assert plan.parameters_after == smallest


def test_an_unknown_site_suggests_the_nearest(known) -> None:
    with pytest.raises(PolicyError, match=r"'tables.9', which is no site.*did you mean \['tables"):
        make(known, afm_fx.Fixed(overrides={"tables.9": 1}))
    with pytest.raises(PolicyError, match="no site"):
        make(known, afm_fx.Fixed(overrides={"last": 1}))


def test_an_override_above_the_width_is_refused(known) -> None:
    with pytest.raises(PolicyError, match=r"rank 9, the site has only 6"):
        make(known, afm_fx.Fixed(overrides={"tables.0": 9}))


@pytest.mark.parametrize(
    "build",
    [
        lambda: afm_fx.Fixed(embedding=0),
        lambda: afm_fx.Fixed(linear=True),
        lambda: afm_fx.Fixed(overrides={"a": -1}),
        lambda: afm_fx.Energy(0),
        lambda: afm_fx.Energy(1.5),
        lambda: afm_fx.Budget(parameters=0.0),
        lambda: afm_fx.Budget(parameters="half"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused_on_construction(build) -> None:
    with pytest.raises(PolicyError, match="got"):
        build()
