"""The policy times a few programs of the frontier, and states what was measured."""

from __future__ import annotations

import json
import re

import pytest

import afm_fx
from afm_fx.errors import PolicyError, ProviderError
from afm_fx.planning import latency_policy
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.multiply_adds import multiply_adds
from afm_fx.planning.planning import PlanningTask
from tests.wide_and_deep import rows_of_ids, wide_and_deep


@pytest.fixture(scope="module")
def task() -> PlanningTask:
    program = wide_and_deep()
    statistics = afm_fx.calibrate(program, [rows_of_ids(300)])
    return PlanningTask(program, statistics, BasisKind.AFM, [], joins_tables=False)


def test_what_is_chosen_is_within_the_limit_by_measurement_and_near_it(task, monkeypatch) -> None:
    """With a clock that charges the packed program's multiply-adds, and 40 us of launches."""
    exports = []

    def charged(program: afm_fx.Program, *_: object) -> float:
        exports.append(program)
        return 40 + sum(multiply_adds(program.graph_module).values()) / 10

    monkeypatch.setattr(latency_policy, "program_p50_us", charged)
    dense = charged(afm_fx.pack(task.program).program)
    limit = 40 + (dense - 40) / 2
    exports.clear()
    plan = task.plan(afm_fx.Latency(limit, batch_size=16))
    (evidence,) = plan.evidence
    made = afm_fx.pack(afm_fx.apply_plan(task.program, plan)).program
    assert evidence.measured == charged(made) <= limit
    assert evidence.measured > 40 + 0.6 * (limit - 40)
    assert evidence.tried == len(exports) - 1 <= 6
    assert json.loads(json.dumps(plan.policy)) == {
        "policy": "Latency", "p50_us": limit, "batch_size": 16, "provider": "cpu", "threads": 1,
    }  # fmt: skip


def test_where_the_original_is_fast_enough_nothing_is_lost(task, monkeypatch) -> None:
    monkeypatch.setattr(latency_policy, "program_p50_us", lambda *_: 5.0)
    plan = task.plan(afm_fx.Latency(6.0))
    assert plan.evidence[0].tried == 2
    assert all(site.kept_energy == pytest.approx(1.0) for site in plan.sites)


def test_the_clock_is_real_and_an_unreachable_latency_says_what_the_smallest_ranks_take(task) -> None:
    with pytest.raises(PolicyError, match=r"a p50 of 0\.01 us at batch size 4 cannot be") as caught:
        task.plan(afm_fx.Latency(0.01, batch_size=4))
    found = re.search(r"the smallest ranks take ([\d.]+) us here", str(caught.value))
    assert found is not None
    assert float(found[1]) > 1


def test_a_provider_that_is_not_here_is_refused_with_those_that_are(task) -> None:
    with pytest.raises(ProviderError, match=r"there is no provider 'abacus'; there are cpu"):
        task.plan(afm_fx.Latency(10.0, provider="abacus"))


@pytest.mark.parametrize("given", [{"p50_us": 0}, {"p50_us": 1, "batch_size": 0}, {"p50_us": 1, "threads": True}])
def test_nonsense_is_refused_on_construction(given) -> None:
    with pytest.raises(PolicyError):
        afm_fx.Latency(**given)
