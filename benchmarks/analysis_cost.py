"""What the passes cost on one graph: seconds for the canonical form, the analysis and the rewrite."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.canonical import Canonicalize
from passes.codes import Factor
from passes.graph import COMPUTED, aten, clone_graph_module
from passes.sink_codes import SinkCodes, analyze
from passes.sites import find_sites

STAGES = ("canonical form", "analysis", "rewrite", "canonical form of the result")
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
