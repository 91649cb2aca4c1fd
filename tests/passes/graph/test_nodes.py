from __future__ import annotations

import torch
from torch import nn

from afm_fx.program.capture import capture
from passes.graph import aten, constant_of, shape_of, weighted_call
from tests.graphs import node_of


def test_constant_of_reads_state_and_nothing_else(module):
    linear = node_of(module, aten.linear.default)
    assert constant_of(module, linear.args[1]) is module.get_parameter("tower.first.weight")
    assert constant_of(module, linear) is None
    assert constant_of(module, 3) is None


def test_shape_of_is_symbolic_in_the_batch_and_none_where_there_is_no_tensor(module):
    shape = shape_of(node_of(module, aten.linear.default))
    assert shape is not None
    assert shape[1] == 3
    assert isinstance(shape[0], torch.SymInt)
    assert shape_of(node_of(module, aten._native_batch_norm_legit_no_training.default)) is None


class Products(nn.Module):
    """Every kind of call with a constant weight, and some that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dense = nn.Embedding(7, 3), nn.Linear(3, 2)
        self.matrix = nn.Parameter(torch.arange(6.0).reshape(3, 2))

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = self.table(ids)
        return self.dense(rows), rows @ self.matrix, torch.addmm(x, rows, self.matrix), rows @ rows.T


def test_a_weighted_call_gives_the_weight_as_outputs_by_inputs_whichever_way_the_operator_takes_it() -> None:
    model = Products()
    graph = capture(model, (torch.tensor([1, 2, 3]), torch.randn(3, 2))).graph_module
    kinds = (aten.linear.default, aten.matmul.default, aten.mm.default, aten.addmm.default, aten.embedding.default)
    found = [weighted for node in graph.graph.nodes if (weighted := weighted_call(graph, node, *kinds))]
    lookup, linear, product, started = found  # the product of rows with rows has no constant weight
    assert (lookup.name, lookup.weight is model.table.weight, lookup.source.op) == ("table.weight", True, "placeholder")
    assert torch.equal(linear.weight, model.dense.weight)
    assert linear.bias is not None
    assert torch.equal(linear.bias, model.dense.bias)
    assert torch.equal(product.weight, model.matrix.T)
    assert torch.equal(started.weight, model.matrix.T)
    assert product.start is None
    assert started.start is not None
    assert started.start.name == "x"
    assert {each.source for each in (linear, product, started)} == {lookup.node}
    assert weighted_call(graph, linear.node, aten.embedding.default) is None
    linear.node.kwargs = {"bias": linear.node.args[2]}
    assert weighted_call(graph, linear.node, *kinds) is None
