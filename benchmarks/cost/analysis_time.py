"""How long the analysis and the rewrite of a graph take, and how that grows with the graph."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.common import options
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.results import RESULTS, Part, Table, result_files
from benchmarks.cost.many_towers import NODES_PER_TOWER, ManyTowers, TowerShape
from passes.canonical import Canonicalize
from passes.codes import Factor
from passes.graph import COMPUTED, aten, clone_graph_module
from passes.sink_codes import SinkCodes, analyze
from passes.sites import find_sites

STAGES = ("canonical form", "analysis", "rewrite", "canonical form of the result")
COLUMNS = ("model", "nodes", "tables", "sites", *(f"{stage} s" for stage in STAGES), "analysis ms / node", "export s")
NODES = [1_000, 2_000, 5_000, 10_000, 20_000]
CODE_WIDTH = 2


@dataclass(frozen=True)
class AnalysisCost:
    """The passes on one graph.

    Attributes:
        model: what the graph was made from.
        nodes: nodes of the canonical graph.
        tables: embedding tables that are looked up.
        sites: tables and Linears, refused ones included.
        capture_seconds: ``torch.export`` with its decompositions, once; no work of the passes.
        wall_seconds: median wall-clock seconds of each of ``STAGES``, checks included.
        processor_seconds: median processor seconds of the same.
        repeats: timed repetitions.
    """

    model: str
    nodes: int
    tables: int
    sites: int
    capture_seconds: float
    wall_seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...]
    repeats: int


def analysis_time(
    *,
    nodes: Annotated[list[int], typer.Option(help="Graph sizes; may be given several times.")] = NODES,
    repeats: Annotated[int, typer.Option(help="Timed repetitions, after one untimed.")] = 3,
    deepfm: Annotated[bool, typer.Option(help="Measure a DeepFM of 26 tables as well (needs deepctr-torch).")] = True,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Measure how long analysis and rewrite of a graph take, and how that grows with the graph.

    Graphs are exported from models of many towers (tables, gates, pairwise products, cross layers, sequences, MLPs);
    each is exported once. Times are medians on one thread, all checks of the passes included.
    """
    torch.set_num_threads(1)
    files = result_files(output_dir, "analysis_time", force=force)
    before, costs, grown = os.getloadavg(), list[AnalysisCost](), list[AnalysisCost]()
    if deepfm:
        shape = CriteoShape(total_rows=10_000)
        costs.append(analysis_cost("DeepFM, 26 tables", shape.deepfm(0), [shape.batch(4, 0)], repeats))
    for wanted in nodes:
        model = ManyTowers(max(1, round(wanted / NODES_PER_TOWER)), TowerShape())
        grown.append(analysis_cost(f"{model.count} towers", model, model.batch(3), repeats))
        typer.echo(f"{grown[-1].nodes:,} nodes: analysis {grown[-1].wall_seconds[1]:.2f} s", err=True)
    every = [*costs, *grown]
    exponents = {stage: growth(grown, place) for place, stage in enumerate(STAGES)} if len(grown) > 1 else {}
    parts: list[Part] = [
        f"1 thread, medians of {repeats}; load average of the machine {before[0]:.1f} at the start, "
        f"{os.getloadavg()[0]:.1f} at the end",
        "`torch.export` (last column) runs once and is not part of the passes. A tower has 26 tables, a gate per "
        "field, FM's pairwise term, a dot interaction, two cross layers, a masked sequence and an MLP.",
        "## Wall-clock seconds",
        Table(COLUMNS, [row_of(each, each.wall_seconds) for each in every]),
        "## Processor seconds",
        Table(COLUMNS, [row_of(each, each.processor_seconds) for each in every]),
        "Processor seconds grow as nodes to the power of: "
        + ", ".join(f"{stage} {power:.2f}" for stage, power in exponents.items())
        + " (1 is linear)."
        if exponents
        else "One size: nothing to say about growth.",
    ]
    files.write("How long analysis and rewrite take", parts, {"stages": STAGES, "graphs": every, "growth": exponents})


def analysis_cost(name: str, model: nn.Module, example: Sequence[Tensor], repeats: int) -> AnalysisCost:
    """Exports a model once and times the passes on copies of its graph, after one untimed round.

    Every round starts with nothing remembered from an earlier one.
    """
    start = time.perf_counter()
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about classes of its own
        exported = torch.export.export(model.eval(), tuple(example), dynamic_shapes=shapes)
        captured = exported.run_decompositions({}).module()
    assert isinstance(captured, GraphModule)
    capture_seconds = time.perf_counter() - start
    rounds = [_round(captured) for _ in range(repeats + 1)][1:]
    canonical = clone_graph_module(captured)
    Canonicalize()(canonical)
    tables = {node.args[0] for node in canonical.graph.nodes if node.target is aten.embedding.default}
    wall, processor = np.median(np.array(rounds), axis=0).T
    return AnalysisCost(
        model=name,
        nodes=len(canonical.graph.nodes),
        tables=len(tables),
        sites=len(find_sites(canonical)),
        capture_seconds=capture_seconds,
        wall_seconds=tuple(float(seconds) for seconds in wall),
        processor_seconds=tuple(float(seconds) for seconds in processor),
        repeats=repeats,
    )


def _round(captured: GraphModule) -> list[tuple[float, float]]:
    """(wall, processor) seconds of every stage, from the graph as exported to the rewritten one."""
    module = clone_graph_module(captured)
    for node in module.graph.nodes:
        node.meta.pop(COMPUTED, None)  # or checks would find their work done
    seconds = [_timed(lambda: Canonicalize()(module)), _timed(lambda: analyze(module))]
    factors = _factors(module)
    seconds.append(_timed(lambda: SinkCodes(factors)(module)))
    seconds.append(_timed(lambda: Canonicalize()(module)))
    return seconds


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


def _factors(module: GraphModule) -> dict[str, Factor]:
    """A factor for every site that may have one; time does not depend on the numbers in it."""
    factors = {}
    for site in find_sites(module):
        if site.refusal is None:
            basis = torch.eye(site.width, min(CODE_WIDTH, site.width), dtype=torch.float64)
            shift = torch.zeros(basis.shape[1], dtype=torch.float64) if site.centred else None
            offset = torch.zeros(site.width, dtype=torch.float64) if site.centred else None
            factors[site.name] = Factor(basis.mT.contiguous(), basis, shift, offset)
    return factors


def growth(costs: Sequence[AnalysisCost], stage: int) -> float:
    """The exponent p of ``seconds ~ nodes^p`` for one stage: 1 is linear (least squares on logarithms)."""
    nodes = np.log([cost.nodes for cost in costs])
    seconds = np.log([cost.processor_seconds[stage] for cost in costs])
    return float(np.polyfit(nodes, seconds, 1)[0])


def row_of(cost: AnalysisCost, seconds: Sequence[float]) -> tuple[str, ...]:
    """One graph under ``COLUMNS``, with the seconds of its stages: the wall clock's, or the processor's."""
    return (
        cost.model,
        f"{cost.nodes:,}",
        f"{cost.tables:,}",
        f"{cost.sites:,}",
        *(f"{stage:.2f}" for stage in seconds),
        f"{1e3 * seconds[1] / cost.nodes:.2f}",
        f"{cost.capture_seconds:.0f}",
    )
