"""The rewrite on every model of the zoo: exact at full rank, within budget below it, exportable, never in place."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.errors import PolicyError
from afm_fx.program.logits import columns_of, expose_logits
from tests.zoo.entry import ZooEntry
from tests.zoo.models import ZOO, captured, zoo_params

CALIBRATION_ROWS = 64
CALIBRATION_SEEDS = (10, 11, 12, 13)
HELD_OUT_ROWS, HELD_OUT_SEED = 32, 14
FRESH_SEED = 5
BUDGET = 0.3


def calibration_batches(entry: ZooEntry) -> list[Any]:
    return [entry.inputs(CALIBRATION_ROWS, seed) for seed in CALIBRATION_SEEDS]


def held_out(entry: ZooEntry) -> Any:
    return entry.inputs(HELD_OUT_ROWS, HELD_OUT_SEED)


@functools.cache
def statistics_of(name: str) -> afm_fx.Statistics:
    entry = next(entry for entry in ZOO if entry.name == name)
    return afm_fx.calibrate(captured(name)[1], calibration_batches(entry), sensitivity_rows=CALIBRATION_ROWS)


@functools.cache
def budgeted(name: str) -> tuple[afm_fx.Plan, afm_fx.Program]:
    """The model under the budget: (plan, program)."""
    program, plan = captured(name)[1], plan_for(name, BUDGET)
    return plan, afm_fx.apply_plan(program, plan)


def plan_for(name: str, budget: float) -> afm_fx.Plan:
    entry = next(entry for entry in ZOO if entry.name == name)
    policy = afm_fx.Budget(parameters=budget)
    return afm_fx.make_plan(captured(name)[1], statistics_of(name), policy, held_out=[held_out(entry)])


def assert_batch_is_symbolic(program: afm_fx.Program) -> None:
    """The batch is a symbol still: computing values in the shared symbolic world did not fix it to the example's."""
    for node, batched in zip(program.placeholders(), program.batched, strict=True):
        assert str(node.meta["val"].shape[0]).isdigit() != batched


@pytest.mark.parametrize("entry", zoo_params())
def test_full_rank_changes_nothing_but_the_form(entry: ZooEntry) -> None:
    program = captured(entry.name)[1].to(torch.float64)
    compressed = afm_fx.compress(program, calibration_batches(entry), afm_fx.FullRank(), pack=False)
    assert_batch_is_symbolic(captured(entry.name)[1])
    assert_batch_is_symbolic(compressed.program)
    for rows in (2, 9, 33):
        inputs = entry.inputs(rows, FRESH_SEED)
        expected, found = program.run(inputs), compressed.program.run(inputs)
        assert pytree.tree_structure(found) == pytree.tree_structure(expected)
        for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            assert (one - other).abs().max() <= 1e-10 * other.abs().max()


@pytest.mark.parametrize("entry", zoo_params())
def test_a_budget_is_kept(entry: ZooEntry) -> None:
    program = captured(entry.name)[1]
    plan, low_rank = budgeted(entry.name)
    assert low_rank.parameter_count() <= BUDGET * program.parameter_count()
    assert low_rank.parameter_count() == plan.parameters_after
    (before, _), (after, _) = map(expose_logits, (program, low_rank))
    rows_held = held_out(entry)
    difference = columns_of(before.run(rows_held)).double() - columns_of(after.run(rows_held)).double()
    assert plan.logit_error == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-2, abs=1e-5)
    for rows in (2, 17):
        outputs = pytree.tree_leaves(low_rank.run(entry.inputs(rows, FRESH_SEED)))
        originals = pytree.tree_leaves(program.run(entry.inputs(rows, FRESH_SEED)))
        for one, other in zip(outputs, originals, strict=True):
            assert one.shape == other.shape
            assert torch.isfinite(one).all()


@pytest.mark.parametrize("name", ["MLR", "DLRM-bags", "xDeepFM"])
def test_of_a_budget_that_is_too_small_the_smallest_reachable_is_named_and_reachable(name: str) -> None:
    with pytest.raises(PolicyError, match=r"the smallest reachable is (\d\.\d+)") as refusal:
        plan_for(name, 0.001)
    named = re.search(r"the smallest reachable is (\d\.\d+)", str(refusal.value))
    assert named is not None
    share = float(named.group(1))
    plan = plan_for(name, share + 1e-4)  # it is printed with four digits
    assert abs(plan.parameters_after / plan.parameters_before - share) <= 1e-4
    with pytest.raises(PolicyError):
        plan_for(name, share - 1e-4)


@pytest.mark.parametrize("entry", zoo_params())
def test_compression_leaves_its_input_untouched(entry: ZooEntry) -> None:
    program = captured(entry.name)[1]
    graph = str(program.graph_module.graph)
    state = {name: tensor.clone() for name, tensor in program.graph_module.state_dict().items()}
    example = pytree.tree_map(torch.clone, (program.example_args, program.example_kwargs))
    plan = afm_fx.make_plan(program, statistics_of(entry.name), afm_fx.Fixed(embedding=2, linear=3))
    afm_fx.apply_plan(program, plan)
    assert str(program.graph_module.graph) == graph
    after = program.graph_module.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    same = pytree.tree_map(torch.equal, example, (program.example_args, program.example_kwargs))
    assert all(pytree.tree_leaves(same))


@pytest.mark.parametrize("entry", zoo_params())
def test_the_compressed_program_exports_and_onnx_runtime_agrees(entry: ZooEntry, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = afm_fx.export_onnx(budgeted(entry.name)[1], tmp_path / "low_rank.onnx")
    assert report.max_abs_difference is not None
    assert report.max_abs_difference <= 1e-5


@pytest.mark.parametrize("entry", zoo_params())
def test_every_site_has_its_chains_and_every_verdict_a_reason(entry: ZooEntry) -> None:
    program = captured(entry.name)[1]
    chains = afm_fx.explain(program).chains
    nodes = {node.name for node in program.graph_module.graph.nodes}
    looked_up = {
        str(node.args[0].target).removesuffix(".weight")
        for node in program.graph_module.graph.nodes
        if node.target is torch.ops.aten.embedding.default
    }
    assert looked_up <= {chain.site.name for chain in chains}
    assert {chain.site.name for chain in chains} >= {site.name for site in statistics_sites(entry.name)}
    for chain in chains:
        assert chain.verdict.reason
        assert set(chain.path) <= nodes
        assert chain.verdict.source or chain.verdict.fate in ("refused", "restored")


def statistics_sites(name: str) -> tuple[afm_fx.planning.SitePlan, ...]:
    return afm_fx.make_plan(captured(name)[1], statistics_of(name), afm_fx.FullRank()).sites


@pytest.mark.parametrize(
    ("name", "site", "fates"),
    [
        ("DictInputModel", "tables.item", {"absorbed"}),
        ("KeywordInputModel", "user_table", {"absorbed"}),
        ("VariadicKeywordModel", "item_table", {"absorbed"}),
        ("StackedTableModel", "table", {"absorbed"}),
        ("SharedTableModel", "city", {"absorbed"}),
        ("TwoTowerModel", "user_table", {"absorbed"}),
        ("TupleOutputModel", "table", {"absorbed"}),
        ("MixedWidthModel", "tables.1", {"absorbed", "on codes"}),
        ("FactorizationMachine", "table", {"absorbed", "on codes"}),
        ("LinearTower", "first", {"restored"}),
        ("BagModel", "bag", {"absorbed"}),
        ("MultiHotDLRM", "bags.item", {"restored"}),
        ("MultiHotDLRM", "bags.city", {"restored"}),
        ("HandMadeLookups", "item", {"absorbed"}),
        ("HandMadeLookups", "city", {"absorbed"}),
        ("HandMadeLookups", "hour", {"absorbed"}),
    ],
)
def test_tables_are_absorbed_by_the_first_linear_and_restored_before_what_is_no_linear(
    name: str, site: str, fates: set[str]
) -> None:
    chains = [chain for chain in afm_fx.explain(captured(name)[1]).chains if chain.site.name == site]
    assert {str(chain.verdict.fate) for chain in chains} == fates
