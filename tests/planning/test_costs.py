"""Costs: what is estimated and counted without data is what the program has that a plan makes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import afm_fx
from afm_fx.errors import PolicyError
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.cost import CostKind, RewriteCosts, cost
from afm_fx.planning.multiply_adds import multiply_adds
from afm_fx.planning.planning import PlanningTask
from tests.graphs import Tower, tower_batch
from tests.wide_and_deep import FIELDS, HIDDEN, WIDTH, rows_of_ids, wide_and_deep


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return wide_and_deep(torch.float32)


@pytest.fixture(scope="module")
def statistics(program: afm_fx.Program) -> afm_fx.Statistics:
    return afm_fx.calibrate(program, [rows_of_ids(400)])


@pytest.fixture(scope="module")
def costs(program: afm_fx.Program, statistics: afm_fx.Statistics) -> RewriteCosts:
    return PlanningTask(program, statistics, BasisKind.AFM, [], joins_tables=False).costs


def low_rank(
    program: afm_fx.Program, statistics: afm_fx.Statistics, policy: afm_fx.planning.Policy
) -> tuple[afm_fx.Program, dict[str, int | None]]:
    plan = afm_fx.make_plan(program, statistics, policy)
    return afm_fx.apply_plan(program, plan), {site.name: site.rank for site in plan.sites}


def linear_multiply_adds(program: afm_fx.Program, rows: Sequence[torch.Tensor]) -> float:
    """As torch counts the matrix products of a real run."""
    with FlopCounterMode(display=False) as counter:
        program.run(rows)
    return counter.get_total_flops() / 2 / len(rows[0])


def test_multiply_adds_of_a_tower_are_those_of_a_real_run() -> None:
    tower = afm_fx.capture(Tower(), tower_batch(4))
    counted = sum(multiply_adds(tower.graph_module).values())
    assert counted == linear_multiply_adds(tower, tower_batch(7)) == 23 * 12 + 12 * 12 + 12


def test_elementwise_products_count_once(program) -> None:
    counted = sum(multiply_adds(program.graph_module).values())
    assert counted == FIELDS * WIDTH * HIDDEN + HIDDEN * HIDDEN + HIDDEN + WIDTH + FIELDS * WIDTH


@pytest.mark.parametrize("kind", list(CostKind))
def test_exact_costs_are_those_of_the_program_made(program, statistics, costs, kind) -> None:
    policy = afm_fx.Fixed(embedding=2, linear=5, overrides={"tables.1": None, "second": 7})
    made, ranks = low_rank(program, statistics, policy)
    counted = {
        CostKind.PARAMETERS: made.parameter_count(),
        CostKind.BYTES: made.state_bytes(),
        CostKind.FLOPS: sum(multiply_adds(made.graph_module).values()),
    }
    assert costs.exact(kind, ranks) == counted[kind]
    assert costs.estimate(kind)(ranks) == pytest.approx(counted[kind], rel=0.06)


@pytest.mark.parametrize("kind", [CostKind.PARAMETERS, CostKind.BYTES])
def test_estimates_are_exact_where_every_site_is_factored_or_left_alone(program, costs, kind) -> None:
    sites = [site for site in costs.analysis.sites if site.refusal is None]
    ranks = {site.name: 1 + place % site.width for place, site in enumerate(sites)}
    assert costs.estimate(kind)(ranks) == costs.exact(kind, ranks)
    assert costs.estimate(kind)({}) == cost(program.graph_module, kind)


def test_a_change_of_one_rank_costs_the_difference_of_the_totals(costs) -> None:
    estimate = costs.estimate(CostKind.PARAMETERS)
    ranks = {site.name: 2 for site in costs.analysis.sites if site.refusal is None}
    for name in ranks:
        for rank in (1, 3, None):
            assert estimate.change(ranks, name, rank) == estimate({**ranks, name: rank}) - estimate(ranks) != 0


@pytest.mark.parametrize("policy", [afm_fx.Budget(flops=0.45), afm_fx.Budget(bytes=0.6)])
def test_a_budget_of_bytes_or_multiply_adds_is_kept_and_used(program, statistics, costs, policy) -> None:
    made, ranks = low_rank(program, statistics, policy)
    spent = costs.exact(policy.kind, ranks) / cost(program.graph_module, policy.kind)
    assert policy.share * 0.9 < spent <= policy.share
    if policy.kind is CostKind.BYTES:
        assert made.state_bytes() <= policy.share * program.state_bytes()


def test_multiply_adds_go_to_layers_and_parameters_to_tables(program, statistics) -> None:
    _, by_flops = low_rank(program, statistics, afm_fx.Budget(flops=0.5))
    _, by_parameters = low_rank(program, statistics, afm_fx.Budget(parameters=0.5))
    width = {name: sum(by[name] or WIDTH for name in by if "tables" in name) for name, by in
             (("flops", by_flops), ("parameters", by_parameters))}  # fmt: skip
    assert width["flops"] > width["parameters"]


def test_tables_are_joined_where_that_saves_the_cost(program, statistics) -> None:
    held_out = [rows_of_ids(200, seed=3)]
    joined = {
        kind: any(site.tables for site in afm_fx.make_plan(program, statistics, policy, held_out=held_out).sites)
        for kind, policy in (("bytes", afm_fx.Budget(bytes=0.5)), ("flops", afm_fx.Budget(flops=0.5)))
    }
    assert joined == {"bytes": True, "flops": False}


@pytest.mark.parametrize("kind", ["bytes", "flops"])
def test_an_unreachable_budget_names_the_smallest(program, statistics, kind: str) -> None:
    with pytest.raises(PolicyError, match=rf"{'multiply-adds' if kind == 'flops' else kind} cannot be reached: the sm"):
        afm_fx.make_plan(program, statistics, afm_fx.Budget(**{kind: 0.01}))


@pytest.mark.parametrize("given", [{}, {"parameters": 0.5, "bytes": 0.5}, {"flops": 1.5}, {"bytes": True}])
def test_a_budget_is_of_exactly_one_share(given) -> None:
    with pytest.raises(PolicyError):
        afm_fx.Budget(**given)


def test_a_budget_describes_itself_by_what_was_given() -> None:
    assert afm_fx.Budget(flops=0.3).describe() == {"policy": "Budget", "flops": 0.3}
    assert afm_fx.Budget(0.2).describe() == {"policy": "Budget", "parameters": 0.2}
