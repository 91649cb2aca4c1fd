"""Runs a program and gives what some of its nodes hold, instead of what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from afm_fx.batches import Batch, flat_inputs
from afm_fx.diagnosis import explain_failed_batch
from afm_fx.program import Program
from passes.graph_tools import clone_graph_module


def tapped_module(module: GraphModule, outputs: Sequence[tuple[str, ...]]) -> GraphModule:
    """The program with other nodes, by name, as its output."""
    tapped = clone_graph_module(module)
    by_name = {node.name: node for node in tapped.graph.nodes}
    output = next(node for node in tapped.graph.nodes if node.op == "output")
    taps: tuple[tuple[Node, ...], ...] = tuple(tuple(by_name[name] for name in names) for names in outputs)
    output.args = (taps,)
    tapped.graph._codegen = torch.fx.graph.CodeGen()
    tapped.graph.eliminate_dead_code()
    tapped.recompile()
    return tapped


def run_tapped(program: Program, tapped: GraphModule, batch: Batch) -> Any:
    """What a tapped copy of the program gives for a batch.

    Raises:
        BatchError: the batch does not fit, or holds an id outside its table.
    """
    try:
        return tapped(*flat_inputs(program, batch))
    except (IndexError, RuntimeError) as error:
        raise explain_failed_batch(program, batch, error) from error
