"""What the tests of the serving passes share: captured graphs, their operators, and the proof that nothing changed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase

from afm_fx.program.capture import capture
from passes.graph import clone_graph_module
from passes.graph.values import compute_value

ROWS = (2, 5)


def graph_of(model: nn.Module, *example: Tensor) -> GraphModule:
    """The model's canonical graph in float64."""
    return capture(model.double().eval(), example).graph_module


def operators(module: GraphModule) -> Counter[str]:
    """How often each operator is called: ``{"linear": 2, ...}``."""
    names = (str(node.target) for node in module.graph.nodes if node.op == "call_function")
    return Counter(name.split(".")[1] if name.startswith("aten.") else name for name in names)


def rewritten(graph: GraphModule, *passes: PassBase, inputs: Any) -> GraphModule:
    """The graph after the passes, having checked outputs (to 1e-12), values, and that the original is as it was.

    Args:
        inputs: ``rows -> inputs``.
    """
    before = str(graph.graph)
    result = clone_graph_module(graph)
    for each in passes:
        done = each(result)
        assert done is not None
        result = done.graph_module
    assert str(graph.graph) == before
    for rows in ROWS:
        batch = inputs(rows)
        torch.testing.assert_close(result(*batch), graph(*batch), rtol=1e-12, atol=1e-12)
    for node in result.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            assert str(compute_value(node).shape) == str(node.meta["val"].shape), node
            assert compute_value(node).dtype == node.meta["val"].dtype, node
    return result
