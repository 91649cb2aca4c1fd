"""The table says what sizes cost; the policy corrects it by timing, and states what was measured."""

from __future__ import annotations

import json
import math
import re

import pytest

import afm_fx
from afm_fx import latency_policy
from afm_fx.basis import BasisKind
from afm_fx.errors import FileFormatError, PolicyError, ProviderError
from afm_fx.latency_table import LatencyTable, measured_table
from afm_fx.planning import PlanningTask
from passes.multiply_adds import multiply_adds
from tests.wide_and_deep import rows_of_ids, wide_and_deep

TABLE = LatencyTable(16, "CPUExecutionProvider", 1, (1, 8, 16), ((1.0, 2.0, 3.0), (2.0, 4.0, 6.0), (3.0, 6.0, 9.0)),
                     (1, 4), (1.0, 2.5))  # fmt: skip


@pytest.fixture(scope="module")
def task() -> PlanningTask:
    program = wide_and_deep()
    statistics = afm_fx.calibrate(program, [rows_of_ids(300)])
    return PlanningTask.of(program, statistics, BasisKind.AFM, [], joins_tables=False)


def test_the_table_interpolates_within_the_grid_and_scales_beyond_it() -> None:
    assert TABLE.product_us(8, 16) == 6.0
    assert TABLE.product_us(12, 8) == 5.0
    assert TABLE.product_us(12, 12) == pytest.approx(6.25)
    assert TABLE.product_us(32, 16) == 18.0
    assert TABLE.product_us(0, 16) == 0.0
    assert TABLE.lookup_us(2) == pytest.approx(1.5)
    assert TABLE.lookup_us(8) == 5.0


def test_a_program_takes_what_its_products_and_lookups_take(task) -> None:
    work = task.situation.costs.work
    left_alone = TABLE.predicted_us(work, {})
    products = TABLE.product_us(18, 24) + TABLE.product_us(24, 24)
    assert left_alone == pytest.approx(products + 3 * TABLE.lookup_us(6))
    ranks = {"tables.0": 2, "tables.1": 2, "tables.2": 2, "first": 4, "second": 4}
    products = TABLE.product_us(6, 4) + 2 * TABLE.product_us(4, 24) + TABLE.product_us(24, 4)
    decoders = 3 * TABLE.product_us(2, 6)
    assert TABLE.predicted_us(work, ranks) == pytest.approx(products + decoders + 3 * TABLE.lookup_us(2))


def test_a_measured_table_rises_with_size_and_survives_json() -> None:
    table = measured_table(64, "CPUExecutionProvider", 1, 64, seconds=0.001)
    assert table.extents[-1] >= 64
    for row in (*table.products_us, *zip(*table.products_us, strict=True), table.lookups_us):
        assert list(row) == sorted(row)
    assert table.product_us(64, 64) > table.product_us(1, 1) >= 0
    assert LatencyTable.from_json(table.to_json()) == table
    with pytest.raises(FileFormatError, match="no latency table"):
        LatencyTable.from_json('{"batch_size": 1}')


def test_what_is_chosen_is_within_the_limit_by_measurement_and_near_it(task, monkeypatch) -> None:
    """With a clock that charges multiply-adds, 40 us of launches, and so disagrees with the table by far."""
    exports = []

    def charged(program: afm_fx.Program, *_: object) -> float:
        exports.append(program)
        return 40 + sum(multiply_adds(program.graph_module).values()) / 10

    monkeypatch.setattr(latency_policy, "program_p50_us", charged)
    dense = charged(afm_fx.pack(task.situation.program).program)
    limit = 40 + (dense - 40) / 2
    exports.clear()
    plan = task.plan(afm_fx.Latency(limit, batch_size=16, table=TABLE))
    (evidence,) = plan.evidence
    made = afm_fx.pack(afm_fx.apply_plan(task.situation.program, plan)).program
    assert evidence.measured == charged(made) <= limit
    assert evidence.measured > 40 + 0.6 * (limit - 40)
    assert evidence.predicted is not None
    assert math.isfinite(evidence.predicted)
    assert evidence.tried == len(exports) - 1 <= 6
    assert json.loads(json.dumps(plan.policy)) == {
        "policy": "Latency", "p50_us": limit, "batch_size": 16, "provider": "cpu", "threads": 1,
    }  # fmt: skip


def test_the_clock_is_real_and_an_unreachable_latency_says_what_the_smallest_ranks_take(task) -> None:
    with pytest.raises(PolicyError, match=r"a p50 of 0\.01 us at batch size 4 cannot be") as caught:
        task.plan(afm_fx.Latency(0.01, batch_size=4, table=TABLE, seconds=0.01))
    found = re.search(r"the smallest ranks take ([\d.]+) us here", str(caught.value))
    assert found is not None
    assert 1 < float(found[1]) < 1e5


def test_a_provider_that_is_not_here_is_refused_with_those_that_are(task) -> None:
    with pytest.raises(ProviderError, match=r"there is no provider 'abacus'; there are cpu"):
        task.plan(afm_fx.Latency(10.0, provider="abacus"))


@pytest.mark.parametrize("given", [{"p50_us": 0}, {"p50_us": 1, "batch_size": 0}, {"p50_us": 1, "threads": True}])
def test_nonsense_is_refused_on_construction(given) -> None:
    with pytest.raises(PolicyError):
        afm_fx.Latency(**given)
