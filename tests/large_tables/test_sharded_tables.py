"""Processes that hold the shards of one model encode what each has: the codes of one process, and nothing is sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import afm_fx
from afm_fx.errors import PlanError
from tests.large_tables import sharded_worker
from tests.wide_and_deep import ROWS, rows_of_ids, wide_and_deep

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 3


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return wide_and_deep()


@pytest.fixture(scope="module")
def state(program: afm_fx.Program) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in program.graph_module.named_parameters()}


@pytest.fixture(scope="module")
def plans(program: afm_fx.Program) -> dict[str, afm_fx.Plan]:
    """One with joint codes, and one with a table of rank 0 and refused tables."""
    statistics = afm_fx.calibrate(program, [rows_of_ids(500)], sensitivity_rows=500)
    fixed = afm_fx.Fixed(embedding=2, linear=4, overrides={"tables.1": 0})
    return {
        "joint": afm_fx.make_plan(program, statistics, afm_fx.Budget(parameters=0.4), held_out=[rows_of_ids(100, 9)]),
        "plain": afm_fx.make_plan(program, statistics, fixed, basis="afm"),
    }


@pytest.fixture(scope="module")
def expected(program: afm_fx.Program, plans: dict[str, afm_fx.Plan]) -> dict[str, dict[str, Tensor]]:
    """The parameters of the low-rank program that one process makes."""
    applied = {name: afm_fx.apply_plan(program, plan).graph_module for name, plan in plans.items()}
    return {name: {key: each.detach() for key, each in module.named_parameters()} for name, module in applied.items()}


@pytest.fixture(scope="module")
def found(
    program: afm_fx.Program,
    state: dict[str, Tensor],
    plans: dict[str, afm_fx.Plan],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("shards")
    save_file(state, folder / "state.safetensors")
    for name, plan in plans.items():
        plan.save(folder / f"{name}.safetensors")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GLOO_SOCKET_IFNAME", "lo")
        others = [
            subprocess.Popen(  # noqa: S603 - this test's own module
                [sys.executable, "-m", "tests.large_tables.sharded_worker", str(folder), str(rank), str(PROCESSES)],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(1, PROCESSES)
        ]  # fmt: skip
        try:
            first = sharded_worker.work(folder, 0, PROCESSES, program)
            for process in others:
                output, _ = process.communicate(timeout=120)
                assert process.returncode == 0, output
        finally:
            for process in others:
                process.kill()
    return [first, *(torch.load(folder / f"{rank}.pt") for rank in range(1, PROCESSES))]


def assert_same(found: Tensor, expected: Tensor | None) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def codes_of(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name in tensors if name.startswith("tables.") and name.endswith(".codes.weight")]


@pytest.mark.parametrize("plan", ["joint", "plain"])
def test_row_shards_give_the_codes_of_one_process_and_send_nothing(
    plan: str, found: list[dict[str, Any]], expected: dict[str, dict[str, Tensor]]
) -> None:
    names = codes_of(expected[plan])
    assert len(names) == {"joint": 3, "plain": 2}[plan]
    for each in found:
        assert each[plan]["sent"] == {}
        assert codes_of(each[plan]["whole"]) == names
        for name in names:
            assert_same(each[plan]["whole"][name], expected[plan][name])
            assert each[plan]["placements"][name] == "(Shard(dim=0),)"
            assert each[plan]["placements"][name.replace("codes", "decoder")] == "(Replicate(),)"
    for name in names:
        assert [each[plan]["rows here"][name] for each in found] == [14, 14, 12]


def test_decoders_give_the_rows_of_the_projection_and_rank_0_a_constant_row(
    found: list[dict[str, Any]], state: dict[str, Tensor], plans: dict[str, afm_fx.Plan]
) -> None:
    whole, factor = found[0]["plain"]["whole"], plans["plain"].factors["tables.0"]
    rows = whole["tables.0.codes.weight"] @ whole["tables.0.decoder.weight"].mT + whole["tables.0.decoder.bias"]
    assert_same(rows, factor.decode(factor.encode_table(state["tables.0.weight"])))
    assert {name for name in whole if name.startswith("tables.1.")} == {"tables.1.decoder.bias"}
    assert_same(whole["tables.1.decoder.bias"], plans["plain"].factors["tables.1"].offset)


def test_refused_tables_and_linears_are_kept_as_they_are(found: list[dict[str, Any]], state: dict[str, Tensor]) -> None:
    whole = found[1]["plain"]["whole"]
    kept = [name for name in state if not name.startswith("tables.")]
    assert {name for name in whole if not name.startswith("tables.")} == set(kept)
    assert all(torch.equal(whole[name], state[name]) for name in kept)
    assert found[1]["plain"]["placements"]["weights.0.weight"] == "(Shard(dim=0),)"


def test_column_shards_take_one_reduction_and_become_row_shards(
    found: list[dict[str, Any]], expected: dict[str, dict[str, Tensor]]
) -> None:
    for each in found:
        (count,) = each["columns"]["sent"].values()
        assert count == 1
        assert "reduce_scatter" in next(iter(each["columns"]["sent"]))
        assert each["columns"]["placements"]["tables.2.codes.weight"] == "(Shard(dim=0),)"
        assert_same(each["columns"]["whole"]["tables.2.codes.weight"], expected["plain"]["tables.2.codes.weight"])


def test_each_process_encodes_the_tables_it_owns(
    found: list[dict[str, Any]], expected: dict[str, dict[str, Tensor]]
) -> None:
    owned = [codes_of(each["table-wise"]["whole"]) for each in found]
    assert sorted(name for names in owned for name in names) == sorted(codes_of(expected["plain"]))
    assert max(map(len, owned)) == 1
    for each, names in zip(found, owned, strict=True):
        assert each["table-wise"]["sent"] == {}
        for name in names:
            assert_same(each["table-wise"]["whole"][name], expected["plain"][name])


@pytest.mark.parametrize("plan", ["joint", "plain"])
def test_a_plan_applied_to_a_sharded_program_makes_the_program_of_one_process_with_sharded_codes(
    plan: str, found: list[dict[str, Any]], expected: dict[str, dict[str, Tensor]]
) -> None:
    applied = found[0]["program"][plan]
    assert applied["sent"] == 0
    assert applied["here"].keys() == expected[plan].keys()
    assert set(codes_of(expected[plan])) <= applied["sharded"]
    for name, tensor in expected[plan].items():
        rows = tensor[:14] if name in applied["sharded"] else tensor
        assert_same(applied["here"][name], rows)


def test_tables_of_one_code_that_are_placed_differently_are_refused(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert (
            "'tables.0.joint' cannot be encoded: tables under one code must be sharded alike"
            in each["placed differently"]
        )


def test_tables_that_do_not_fit_the_plan_are_refused(state: dict[str, Tensor], plans: dict[str, afm_fx.Plan]) -> None:
    with pytest.raises(PlanError, match=r"'tables.0' is \[\[39, 6\]\], in the plan \[40, 6\]"):
        afm_fx.large_tables.encode_sharded(plans["plain"], {"tables.0.weight": state["tables.0.weight"][1:]})
    alone = {name: tensor for name, tensor in state.items() if name != "weights.0.weight"}
    with pytest.raises(PlanError, match=r"'weights.0' is not here"):
        afm_fx.large_tables.encode_sharded(plans["joint"], alone)
    with pytest.raises(PlanError, match=r"'tables.0.weight' is a _Other"):
        afm_fx.large_tables.encode_sharded(
            plans["plain"], {"tables.0.weight": state["tables.0.weight"].as_subclass(_Other)}
        )


class _Other(Tensor):
    """A tensor of a kind that nobody here knows."""


def test_a_program_takes_other_tensors_as_tables_and_stays_as_it_is(program: afm_fx.Program) -> None:
    ids = rows_of_ids(20)
    before = program.run(ids)
    twin = afm_fx.large_tables.with_tables(
        program, {"tables.0.weight": torch.zeros(ROWS, 6).double(), "unknown": torch.zeros(1)}
    )
    assert not torch.equal(twin.run(ids), before)
    assert torch.equal(program.run(ids), before)
    with pytest.raises(PlanError, match=r"'tables.0.weight' is \[40, 5\]"):
        afm_fx.large_tables.with_tables(program, {"tables.0.weight": torch.zeros(ROWS, 5).double()})


def test_a_model_is_captured_with_tables_that_hold_one_number(
    program: afm_fx.Program, state: dict[str, Tensor]
) -> None:
    blank = {name: torch.zeros(()).double().expand(tensor.shape) for name, tensor in state.items() if "tables" in name}
    hollow = afm_fx.large_tables.with_tables(program, blank)
    assert hollow.graph_module.get_parameter("tables.0.weight").untyped_storage().nbytes() == 8
    ids = rows_of_ids(20)
    assert torch.equal(afm_fx.large_tables.with_tables(hollow, state).run(ids), program.run(ids))
