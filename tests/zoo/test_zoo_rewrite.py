"""The rewrite, on every model of the zoo: exact at full rank, within budget below it, exportable, and never in place."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import afm_fx
from afm_fx.errors import PolicyError
from tests.zoo.entry import ZooEntry
from tests.zoo.models import ZOO, captured, zoo_params

CALIBRATION_ROWS = 64
CALIBRATION_SEEDS = (10, 11, 12, 13)
FRESH_SEED = 5
BUDGET = 0.3


def calibration_batches(entry: ZooEntry) -> list[Any]:
    return [entry.inputs(CALIBRATION_ROWS, seed) for seed in CALIBRATION_SEEDS]


@functools.cache
def statistics_of(name: str) -> afm_fx.Statistics:
    entry = next(entry for entry in ZOO if entry.name == name)
    return afm_fx.calibrate(captured(name)[1], calibration_batches(entry))


def budgeted(entry: ZooEntry) -> tuple[afm_fx.Plan, afm_fx.Program]:
    """The model under the budget, or skipped with the smallest reachable one where that is larger."""
    program = captured(entry.name)[1]
    try:
        plan = afm_fx.make_plan(program, statistics_of(entry.name), afm_fx.Budget(parameters=BUDGET))
    except PolicyError as refusal:
        assert "the smallest reachable is" in str(refusal)
        smallest = float(str(refusal).rpartition("the smallest reachable is ")[2].split()[0])
        assert BUDGET < smallest <= 1
        reachable = afm_fx.Budget(parameters=min(1.0, smallest + 1e-3))
        plan = afm_fx.make_plan(program, statistics_of(entry.name), reachable)
    return plan, afm_fx.apply_plan(program, plan)


@pytest.mark.parametrize("entry", zoo_params())
def test_full_rank_changes_nothing_but_the_form(entry: ZooEntry) -> None:
    program = captured(entry.name)[1].to(torch.float64)
    compressed = afm_fx.compress(program, calibration_batches(entry), afm_fx.FullRank())
    for rows in (2, 9, 33):
        inputs = entry.inputs(rows, FRESH_SEED)
        expected, found = program.run(inputs), compressed.program.run(inputs)
        assert pytree.tree_structure(found) == pytree.tree_structure(expected)
        for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            assert (one - other).abs().max() <= 1e-10 * other.abs().max()


@pytest.mark.parametrize("entry", zoo_params())
def test_a_budget_is_kept_or_its_smallest_reachable_is_named_and_reachable(entry: ZooEntry) -> None:
    program = captured(entry.name)[1]
    plan, low_rank = budgeted(entry)
    assert low_rank.parameter_count() == plan.parameters_after
    assert plan.policy["parameters"] >= low_rank.parameter_count() / program.parameter_count()
    for rows in (1 if entry.name != "DCNMix" else 2, 17):
        outputs = pytree.tree_leaves(low_rank.run(entry.inputs(rows, FRESH_SEED)))
        originals = pytree.tree_leaves(program.run(entry.inputs(rows, FRESH_SEED)))
        for one, other in zip(outputs, originals, strict=True):
            assert one.shape == other.shape
            assert torch.isfinite(one).all()


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
    report = afm_fx.export_onnx(budgeted(entry)[1], tmp_path / "low_rank.onnx")
    assert report.max_abs_difference <= 1e-5


@pytest.mark.parametrize("entry", zoo_params())
def test_every_site_has_a_chain_and_every_verdict_a_reason(entry: ZooEntry) -> None:
    program = captured(entry.name)[1]
    tables = {
        name for name, _ in program.graph_module.named_parameters() if "embedding_dict" in name or "table" in name
    }
    chains = afm_fx.find_chains(program)
    text = afm_fx.chains_table(chains)
    for chain in chains:
        assert chain.site in text
        for verdict in chain.uses:
            assert verdict.reason
            assert verdict.node in {node.name for node in program.graph_module.graph.nodes}
    assert bool(chains) == bool(tables) or entry.name in {"MLR", "LinearTower", "BagModel", "ONN"}
