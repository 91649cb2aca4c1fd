from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.cost.analysis_time import STAGES, AnalysisCost, analysis_cost, growth
from benchmarks.cost.many_towers import NODES_PER_TOWER, ManyTowers, TowerShape
from passes.canonical.canonicalize import Canonicalize
from passes.graph import clone_graph_module
from passes.laws.outcomes import Law
from passes.laws.verdicts import Fate
from passes.sink_codes import SinkCodes, analyze
from tests.passes.test_sink_codes import orthonormal_factors

SMALL = TowerShape(fields=6, dense=3, width=4, hidden=(8, 8))


def exported(
    towers: int, shape: TowerShape = SMALL, dtype: torch.dtype = torch.float32
) -> tuple[ManyTowers, GraphModule]:
    model = ManyTowers(towers, shape).to(dtype).eval()
    example = tuple(each.to(dtype) if each.is_floating_point() else each for each in model.batch(3))
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    module = torch.export.export(model, example, dynamic_shapes=shapes).run_decompositions({}).module()
    assert isinstance(module, GraphModule)
    Canonicalize()(module)
    return model, module


def calls_of(action: Callable[[], object]) -> int:
    """Function calls, Python's and C's: work that does not depend on the machine."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.thorough
def test_work_grows_no_faster_than_the_graph() -> None:
    nodes, analyses, rewrites = [], [], []
    for towers in (2, 8):
        module = exported(towers)[1]
        analyze(module)  # once untimed, so that what torch does on first use is not counted
        nodes.append(len(module.graph.nodes))
        analyses.append(calls_of(lambda module=module: analyze(module)))  # type: ignore[misc]
        clone = clone_graph_module(module)
        factors = orthonormal_factors(clone, ("embedding", "linear"))
        rewrites.append(calls_of(lambda clone=clone, factors=factors: SinkCodes(factors)(clone)))  # type: ignore[misc]
    assert nodes[1] > 3.5 * nodes[0]
    for calls in (analyses, rewrites):
        assert calls[1] / calls[0] < 1.1 * nodes[1] / nodes[0]


def test_the_model_has_every_kind_of_use_and_the_rewrite_keeps_it() -> None:
    model, module = exported(2, dtype=torch.float64)
    verdicts = analyze(module).verdicts
    assert {verdict.fate for verdict in verdicts} == {Fate.ABSORBED, Fate.ON_CODES, Fate.RESTORED}
    assert {verdict.law for verdict in verdicts} >= {Law.LINEAR, Law.GATE, Law.QUADRATIC, Law.NONLINEAR}
    SinkCodes(orthonormal_factors(module, ("embedding", "linear")))(module)
    batch = [each.double() if each.is_floating_point() else each for each in model.batch(7)]
    torch.testing.assert_close(module(*batch), model(*batch), rtol=1e-10, atol=1e-10)


def test_every_stage_is_timed() -> None:
    model = ManyTowers(1, SMALL)
    cost = analysis_cost("one tower", model, model.batch(3), repeats=2)
    assert cost.tables == SMALL.fields + 2
    assert cost.sites > cost.tables
    assert len(cost.wall_seconds) == len(cost.processor_seconds) == len(STAGES)
    assert min(cost.wall_seconds + cost.processor_seconds) > 0


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_growth_is_the_power_of_the_nodes(power: float) -> None:
    costs = [AnalysisCost("", nodes, 0, 0, 0.0, (), (nodes**power,), 1) for nodes in (10, 100, 1000)]
    assert growth(costs, 0) == pytest.approx(power)


@pytest.mark.thorough
def test_the_command_measures_graphs_of_about_the_sizes_asked_for_and_replaces_no_page(tmp_path: Path) -> None:
    call = ["analysis-time", "--nodes", "1", "--nodes", str(2 * NODES_PER_TOWER), "--repeats", "1", "--no-deepfm"]
    call += ["--output-dir", str(tmp_path)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "analysis_time.md").read_text(encoding="utf-8")
    assert "| 1 towers | " in page
    assert "nodes to the power of: canonical form" in page
    content = json.loads((tmp_path / "analysis_time.json").read_text(encoding="utf-8"))
    assert [graph["model"] for graph in content["graphs"]] == ["1 towers", "2 towers"]
    one, two = (graph["nodes"] for graph in content["graphs"])
    assert abs(two - one - NODES_PER_TOWER) < 0.05 * NODES_PER_TOWER
    assert set(content["growth"]) == set(STAGES)
    assert CliRunner().invoke(app, call).exit_code == 2
