from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from afm_fx.program.capture import capture
from passes.graph import graph_tools
from passes.graph.graph_tools import (
    PROVENANCE,
    aten,
    clone_graph_module,
    reserve_names,
)


class Deep(nn.Module):
    """A Linear inside a child, a buffer, and a table that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleDict({"first": nn.Linear(4, 3)})
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tower["first"](x)).relu()


@pytest.fixture
def module() -> GraphModule:
    return capture(Deep().eval(), torch.randn(3, 4)).graph_module


def node_of(module: GraphModule, target: object) -> torch.fx.Node:
    return next(node for node in module.graph.nodes if node.target == target)


def test_a_clone_shares_tensors_and_not_the_graph(module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone = graph_tools.clone_graph_module(module)
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
    clone = graph_tools.clone_graph_module(module)
    node_of(clone, aten.relu.default).replace_all_uses_with(next(iter(clone.graph.find_nodes(op="placeholder"))))
    graph_tools.finish(clone)
    assert list(clone.parameters()) == []
    assert list(clone.buffers()) == []
    assert module(torch.randn(5, 4)).shape == (5, 3)
    assert len(list(module.parameters())) == 4


def test_call_makes_a_node_with_value_rule_and_source(module):
    relu = node_of(module, aten.relu.default)
    with module.graph.inserting_after(relu):
        node = graph_tools.call(module.graph, aten.sum.dim_IntList, relu, [1], rule="test rule", like=relu)
    batch = relu.meta["val"].shape[0]
    assert isinstance(batch, torch.SymInt)
    assert node.meta["val"].shape == (batch,)
    assert node.meta["val"].dtype == torch.float32
    assert node.meta[PROVENANCE] == "test rule"
    assert node.meta["stack_trace"] == relu.meta["stack_trace"]


def test_a_new_parameter_is_registered_under_its_own_name_before_all_nodes(module):
    first = graph_tools.parameter(module, "tower.first.codes.weight", torch.ones(2, 2), rule="test rule")
    second = graph_tools.parameter(module, "tower.first.codes.weight", torch.zeros(3), rule="test rule")
    assert (first.target, second.target) == ("tower.first.codes.weight", "tower.first.codes.weight_1")
    assert torch.equal(module.get_parameter("tower.first.codes.weight"), torch.ones(2, 2))
    assert first.meta["val"].shape == (2, 2)
    assert {first, second} == set(list(module.graph.nodes)[:2])
    assert module.get_parameter("tower.first.codes.weight").requires_grad


def test_a_new_parameter_beneath_a_tensor_gets_a_name_of_its_own(module):
    module.register_parameter("table", nn.Parameter(torch.ones(2)))
    names = ["table.codes.weight", "tower.first.weight.codes.weight"]
    made = [graph_tools.parameter(module, name, torch.zeros(3), rule="test rule").target for name in names]
    assert made == ["table_codes.weight", "tower.first.weight_codes.weight"]
    assert all(module.get_parameter(name).shape == (3,) for name in made)
    assert torch.equal(module.get_parameter("table"), torch.ones(2))


def test_constant_of_reads_state_and_nothing_else(module):
    linear = node_of(module, aten.linear.default)
    assert graph_tools.constant_of(module, linear.args[1]) is module.get_parameter("tower.first.weight")
    assert graph_tools.constant_of(module, linear) is None
    assert graph_tools.constant_of(module, 3) is None


def test_shape_of_is_symbolic_in_the_batch_and_none_where_there_is_no_tensor(module):
    shape = graph_tools.shape_of(node_of(module, aten.linear.default))
    assert shape is not None
    assert shape[1] == 3
    assert isinstance(shape[0], torch.SymInt)
    assert graph_tools.shape_of(node_of(module, aten._native_batch_norm_legit_no_training.default)) is None


def test_finish_drops_dead_nodes_and_what_only_they_used(module):
    linear = node_of(module, aten.linear.default)
    with module.graph.inserting_after(linear):
        module.graph.call_function(aten.tanh.default, (linear,))
    graph_tools.parameter(module, "extra.deep.weight", torch.ones(2), rule="test rule")
    graph_tools.finish(module)
    assert "tanh" not in str(module.graph)
    assert not hasattr(module, "extra")
    assert {name for name, _ in module.named_parameters()} == {
        "tower.first.weight",
        "tower.first.bias",
        "norm.weight",
        "norm.bias",
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_convert_dtype_converts_a_copy(module, dtype):
    converted = graph_tools.convert_dtype(module, dtype)
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
    converted = graph_tools.convert_dtype(program.graph_module, torch.float64)
    assert converted.get_buffer("starts").dtype == torch.int64
    assert converted(torch.zeros(2, 2, dtype=torch.int64)).dtype == torch.float64


def test_computing_values_again_never_fixes_the_batch_to_the_examples():
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(x.unsqueeze(1), (0, 0, 1, 1)).relu()

    program = capture(Padded(), torch.randn(6, 4, 4))
    converted = program.to(torch.float64)
    for each in (program, converted):
        assert not str(each.placeholders()[0].meta["val"].shape[0]).isdigit()
        assert not str(node_of(each.graph_module, aten.relu.default).meta["val"].shape[0]).isdigit()


def test_a_parameter_beside_a_tensor_of_a_parameter_list_gets_a_name_of_its_own() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.ParameterList([torch.randn(3, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.kernels[0]

    module = capture(Listed(), torch.randn(4, 3)).graph_module
    node = graph_tools.parameter(module, "kernels.0.on_codes.weight", torch.randn(2, 2), rule="test")
    assert node.target == "kernels.0_on_codes.weight"
    assert torch.equal(graph_tools.get_attribute(module, str(node.target)), module.get_parameter(str(node.target)))


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
    assert graph_tools.drop_unused_state(module)
    assert [name for name, _ in module.named_parameters()] == ["inner.0.weight", "inner.0.bias"]
    assert not graph_tools.drop_unused_state(module)
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
    found = [weighted for node in graph.graph.nodes if (weighted := graph_tools.weighted_call(graph, node, *kinds))]
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
    assert graph_tools.weighted_call(graph, linear.node, aten.embedding.default) is None
    linear.node.kwargs = {"bias": linear.node.args[2]}
    assert graph_tools.weighted_call(graph, linear.node, *kinds) is None
