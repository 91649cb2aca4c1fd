from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from afm_fx.program.capture import capture
from passes.graph import aten, clone_graph_module, convert_dtype, finish
from tests.graphs import node_of


def test_a_clone_shares_tensors_and_not_the_graph(module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone = clone_graph_module(module)
    state = dict(module.named_parameters())
    assert {name: id(parameter) for name, parameter in clone.named_parameters()} == {
        name: id(parameter) for name, parameter in state.items()
    }
    assert not clone.training
    relu = node_of(clone, aten.relu.default)
    relu.target = aten.tanh.default
    clone.recompile()
    x = torch.randn(5, 4)
    assert not torch.equal(clone(x), module(x))
    assert "relu" in str(module.graph)


def test_deleting_from_a_clone_leaves_the_original(module):
    clone = clone_graph_module(module)
    node_of(clone, aten.relu.default).replace_all_uses_with(next(iter(clone.graph.find_nodes(op="placeholder"))))
    finish(clone)
    assert list(clone.parameters()) == []
    assert list(clone.buffers()) == []
    assert module(torch.randn(5, 4)).shape == (5, 3)
    assert len(list(module.parameters())) == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_convert_dtype_converts_a_copy(module, dtype):
    converted = convert_dtype(module, dtype)
    assert {tensor.dtype for tensor in [*converted.parameters(), *converted.buffers()]} == {dtype}
    assert {tensor.dtype for tensor in [*module.parameters(), *module.buffers()]} == {torch.float32}
    assert node_of(converted, aten.relu.default).meta["val"].dtype == dtype
    assert isinstance(node_of(converted, aten.relu.default).meta["val"].shape[0], torch.SymInt)
    assert converted(torch.randn(5, 4, dtype=dtype)).dtype == dtype
    linear, copy = (node_of(each, aten.linear.default) for each in (module, converted))
    assert linear.meta["stack_trace"] == copy.meta["stack_trace"]


def test_convert_dtype_leaves_integer_state_alone():
    class Offsets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 2)
            self.starts: Tensor
            self.register_buffer("starts", torch.tensor([0, 4]))

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids + self.starts)

    program = capture(Offsets().eval(), torch.zeros(3, 2, dtype=torch.int64))
    converted = convert_dtype(program.graph_module, torch.float64)
    assert converted.get_buffer("starts").dtype == torch.int64
    assert converted(torch.zeros(2, 2, dtype=torch.int64)).dtype == torch.float64
