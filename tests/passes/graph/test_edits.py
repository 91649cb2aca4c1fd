from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule

from afm_fx.program.capture import capture
from passes.graph import (
    PROVENANCE,
    aten,
    call,
    clone_graph_module,
    drop_unused_state,
    finish,
    get_attribute,
    parameter,
    reserve_names,
)
from tests.graphs import node_of


def test_call_makes_a_node_with_value_rule_and_source(module):
    relu = node_of(module, aten.relu.default)
    with module.graph.inserting_after(relu):
        node = call(module.graph, aten.sum.dim_IntList, relu, [1], rule="test rule", like=relu)
    batch = relu.meta["val"].shape[0]
    assert isinstance(batch, torch.SymInt)
    assert node.meta["val"].shape == (batch,)
    assert node.meta["val"].dtype == torch.float32
    assert node.meta[PROVENANCE] == "test rule"
    assert node.meta["stack_trace"] == relu.meta["stack_trace"]


def test_a_new_parameter_is_registered_under_its_own_name_before_all_nodes(module):
    first = parameter(module, "tower.first.codes.weight", torch.ones(2, 2), rule="test rule")
    second = parameter(module, "tower.first.codes.weight", torch.zeros(3), rule="test rule")
    assert (first.target, second.target) == ("tower.first.codes.weight", "tower.first.codes.weight_1")
    assert torch.equal(module.get_parameter("tower.first.codes.weight"), torch.ones(2, 2))
    assert first.meta["val"].shape == (2, 2)
    assert {first, second} == set(list(module.graph.nodes)[:2])
    assert module.get_parameter("tower.first.codes.weight").requires_grad


def test_a_new_parameter_beneath_a_tensor_gets_a_name_of_its_own(module):
    module.register_parameter("table", nn.Parameter(torch.ones(2)))
    names = ["table.codes.weight", "tower.first.weight.codes.weight"]
    made = [parameter(module, name, torch.zeros(3), rule="test rule").target for name in names]
    assert made == ["table_codes.weight", "tower.first.weight_codes.weight"]
    assert all(module.get_parameter(name).shape == (3,) for name in made)
    assert torch.equal(module.get_parameter("table"), torch.ones(2))


def test_finish_drops_dead_nodes_and_what_only_they_used(module):
    linear = node_of(module, aten.linear.default)
    with module.graph.inserting_after(linear):
        module.graph.call_function(aten.tanh.default, (linear,))
    parameter(module, "extra.deep.weight", torch.ones(2), rule="test rule")
    finish(module)
    assert "tanh" not in str(module.graph)
    assert not hasattr(module, "extra")
    assert {name for name, _ in module.named_parameters()} == {
        "tower.first.weight",
        "tower.first.bias",
        "norm.weight",
        "norm.bias",
    }


def test_a_parameter_beside_a_tensor_of_a_parameter_list_gets_a_name_of_its_own() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.ParameterList([torch.randn(3, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.kernels[0]

    module = capture(Listed(), torch.randn(4, 3)).graph_module
    node = parameter(module, "kernels.0.on_codes.weight", torch.randn(2, 2), rule="test")
    assert node.target == "kernels.0_on_codes.weight"
    assert torch.equal(get_attribute(module, str(node.target)), module.get_parameter(str(node.target)))


def test_state_of_a_submodule_that_is_called_as_a_whole_is_kept() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.unused = nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner: torch.Tensor = self.inner(x)
            return inner

    class LeafTracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = Called()
    module = torch.fx.GraphModule(model, LeafTracer().trace(model))
    module.add_module("unused", nn.Linear(3, 2))
    assert drop_unused_state(module)
    assert [name for name, _ in module.named_parameters()] == ["inner.0.weight", "inner.0.bias"]
    assert not drop_unused_state(module)
    rows = torch.randn(2, 3)
    assert torch.equal(module(rows), model(rows))


def test_reserved_names_of_nodes_that_are_gone_are_not_given_again() -> None:
    graph = torch.fx.Graph()
    given = graph.placeholder("given")
    first = graph.call_function(aten.relu.default, (given,))
    kept = graph.call_function(aten.neg.default, (first,))
    graph.output(kept)
    module = GraphModule(torch.nn.Module(), graph)
    gone = first.name
    kept.args = (given,)
    graph.erase_node(first)
    clone = clone_graph_module(module)
    reserve_names(clone, {gone, kept.name})
    with clone.graph.inserting_after(next(iter(clone.graph.nodes))):
        assert clone.graph.call_function(aten.relu.default, (next(iter(clone.graph.nodes)),)).name != gone
