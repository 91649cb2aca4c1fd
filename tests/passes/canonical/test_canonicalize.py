from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.canonical.canonicalize import Canonicalize
from passes.canonical.state_writes import erase_state_writes
from passes.graph.errors import GraphInvariantError
from passes.graph.values import compute_value

aten = torch.ops.aten
ROWS = 5


class Function(nn.Module):
    """A function of tensors as a module, with one weight at hand."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.weight, *inputs)


def functional_graph(function: Callable[..., Tensor], *example: Tensor) -> GraphModule:
    """The function's ATen graph as torch.export leaves it, dynamic in the batch."""
    batch = torch.export.Dim("batch")
    shapes = (tuple({0: batch} for _ in example),)
    exported = torch.export.export(Function(function).eval(), example, dynamic_shapes=shapes)
    module = exported.run_decompositions({}).module()
    module._forward_pre_hooks.clear()
    return module


def operators(module: GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def canonical(function: Callable[..., Tensor], *example: Tensor) -> tuple[list[str], GraphModule]:
    """The canonical graph, having checked that it still computes the function, and that it is canonical."""
    module = functional_graph(function, *example)
    result = Canonicalize()(module)
    assert result is not None
    fresh = [torch.randn(ROWS, *tensor.shape[1:]).to(tensor.dtype) for tensor in example]
    with torch.no_grad():
        assert torch.equal(module(*fresh), function(module.weight if hasattr(module, "weight") else None, *fresh))
    again = Canonicalize()(module)
    assert again is not None
    assert not again.modified
    assert_values_are_right(module)
    return operators(module), module


def assert_values_are_right(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor):
            value = compute_value(node)
            assert str(value.shape) == str(node.meta["val"].shape)
            assert str(value.stride()) == str(node.meta["val"].stride())
            assert value.dtype == node.meta["val"].dtype


X = torch.randn(3, 4)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        pytest.param(lambda w, x: x[:, 0:4].relu(), ["aten.relu.default"], id="whole slice"),
        pytest.param(lambda w, x: x[:].relu(), ["aten.relu.default"], id="slice of the batch"),
        pytest.param(lambda w, x: x.clone().relu(), ["aten.relu.default"], id="clone"),
        pytest.param(lambda w, x: x.detach().relu(), ["aten.relu.default"], id="detach"),
        pytest.param(lambda w, x: nn.functional.dropout(x, 0.5, False).relu(), ["aten.relu.default"], id="dropout"),
        pytest.param(lambda w, x: torch.cat([x]).relu(), ["aten.relu.default"], id="cat of one"),
        pytest.param(lambda w, x: x.to(torch.float32).relu(), ["aten.relu.default"], id="cast to the same"),
        pytest.param(lambda w, x: x.view(x.shape).relu(), ["aten.relu.default"], id="view of the same shape"),
        pytest.param(lambda w, x: x.view(-1, 4).relu(), ["aten.relu.default"], id="view with -1"),
        pytest.param(lambda w, x: x.expand(-1, 4).relu(), ["aten.relu.default"], id="expand"),
        pytest.param(lambda w, x: x.expand_as(x).relu(), ["aten.relu.default"], id="expand as itself"),
        pytest.param(
            lambda w, x: x.clone().view(-1, 4).detach().relu(), ["aten.relu.default"], id="several in a row"
        ),
        pytest.param(
            lambda w, x: x.t().contiguous().relu().t(),
            ["aten.permute.default", "aten.relu.default", "aten.permute.default"],
            id="copy for layout",
        ),
        pytest.param(lambda w, x: x.squeeze(1).relu(), ["aten.relu.default"], id="squeeze of an axis that is not 1"),
        pytest.param(
            lambda w, x: x.unsqueeze(1).squeeze((1, -1)).relu(),
            ["aten.unsqueeze.default", "aten.squeeze.dims", "aten.relu.default"],
            id="squeeze of two axes of which one is 1",
        ),
    ],
)  # fmt: skip
def test_no_ops_are_gone(function, left):
    names, _ = canonical(function, X)
    assert [_spelling(name) for name in names] == [_spelling(name) for name in left]


def _spelling(name: str) -> str:
    """``t`` and ``transpose`` are permutations by another name."""
    return "aten.permute.default" if name in ("aten.t.default", "aten.transpose.int") else name


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        pytest.param(lambda w, x: x[:, 1:].relu(), "aten.slice.Tensor", id="slice from 1"),
        pytest.param(lambda w, x: x[:, :3].relu(), "aten.slice.Tensor", id="slice to 3"),
        pytest.param(lambda w, x: x[:, ::2].relu(), "aten.slice.Tensor", id="slice by 2"),
        pytest.param(lambda w, x: torch.cat([x, x], 1).relu(), "aten.cat.default", id="cat of the same twice"),
        pytest.param(lambda w, x: x.double().relu(), "aten._to_copy.default", id="cast"),
        pytest.param(lambda w, x: x.view(-1, 2, 2).relu(), "aten.reshape.default", id="view"),
        pytest.param(lambda w, x: x.view(-1, 2).relu(), "aten.reshape.default", id="view across the batch"),
        pytest.param(lambda w, x: x[:, :1].expand(-1, 4).relu(), "aten.expand.default", id="expand"),
        pytest.param(lambda w, x: x.unsqueeze(1).expand(-1, 3, -1).relu(), "aten.expand.default", id="a new axis"),
        pytest.param(lambda w, x: x.clone(), "aten.clone.default", id="a copy that is returned"),
        pytest.param(lambda w, x: x.squeeze(1), "aten.clone.default", id="a squeeze of nothing that is returned"),
        pytest.param(lambda w, x: x.squeeze(0).relu(), "aten.squeeze.dim", id="squeeze of the batch"),
    ],
)  # fmt: skip
def test_what_does_something_stays(function, kept):
    names, _ = canonical(function, X)
    assert kept in names


def test_an_expand_of_one_row_to_the_batch_stays_for_every_batch_size():
    def function(w, x, y):
        return w[:1].expand(x.shape[0], 4) * y

    names, module = canonical(function, X, X)
    assert "aten.expand.default" in names
    assert module(torch.ones(1, 4), torch.ones(1, 4)).shape == (1, 4)


def test_views_ask_nothing_of_the_memory_layout():
    names, module = canonical(
        lambda w, x: x.transpose(1, 2).contiguous().view(x.shape[0], -1).relu(), torch.randn(3, 4, 2)
    )
    assert "aten.view.default" not in names
    assert "aten.clone.default" not in names
    strided = torch.randn(2, 4, ROWS).permute(2, 1, 0)
    assert module(strided).shape == (ROWS, 8)


def test_where_strides_are_read_copies_for_layout_stay():
    def function(w, x):
        return torch.as_strided(x.t().clone(memory_format=torch.contiguous_format), (2, 2), (1, 2)).relu()

    module = functional_graph(function, X)
    expected = module(X)
    Canonicalize()(module)
    assert torch.equal(module(X), expected)
    assert "aten.as_strided.default" in operators(module)
    assert "aten.clone.default" in operators(module)


def test_assertions_and_guards_are_gone_with_all_that_only_they_needed():
    def function(w, x):
        torch._assert_async(x.isfinite().all(), "finite")
        return x.to(torch.float32).relu()

    module = functional_graph(function, X)
    assert any(node.op == "call_module" for node in module.graph.nodes)
    Canonicalize()(module)
    assert operators(module) == ["aten.relu.default"]
    assert not any(node.op == "call_module" for node in module.graph.nodes)
    assert not hasattr(module, "_guards_fn")


def test_equal_subexpressions_are_computed_once():
    names, _ = canonical(lambda w, x: (x[:, 1:].relu() + 1) * (x[:, 1:].relu() + 1), X)
    assert names == ["aten.slice.Tensor", "aten.relu.default", "aten.add.Tensor", "aten.mul.Tensor"]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda w, x: (x + 1) - (x + 1.5), id="values"),
        pytest.param(lambda w, x: (x.long() + 1) - (x.long() + 1.0) / 3, id="int and float"),
        pytest.param(lambda w, x: (x.long() * 1) - (x.long() * True) / 3, id="int and bool"),
        pytest.param(lambda w, x: (x + 0.0) / (x + -0.0), id="zeros of two signs"),
        pytest.param(lambda w, x: x.sum(1, dtype=torch.float32) - x.sum(1, dtype=torch.float64), id="dtypes"),
        pytest.param(lambda w, x: torch.full((1, 1), 1) * x + torch.full((1, 1), 1.0), id="full of int and float"),
    ],
)
def test_subexpressions_with_different_constants_are_not_merged(function):
    module = functional_graph(function, X)
    before = operators(module)
    expected = module(X)
    Canonicalize()(module)
    assert len(operators(module)) >= len([name for name in before if "_to_copy" not in name and "assert" not in name])
    assert torch.equal(module(X), expected)
    assert module(X).dtype == expected.dtype


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda w, x: torch.rand_like(x) - torch.rand_like(x), "rand_like"),
        (lambda w, x: torch.randn(4) * x - torch.randn(4), "randn"),
        (lambda w, x: torch.rand(4) * x - torch.rand(4), "rand"),
        (lambda w, x: torch.randint(9, (4,)) * x - torch.randint(9, (4,)), "randint"),
        (lambda w, x: torch.bernoulli(x.sigmoid()) - torch.bernoulli(x.sigmoid()), "bernoulli"),
        (lambda w, x: torch.normal(x, 1.0) - torch.normal(x, 1.0), "normal"),
        (lambda w, x: torch.multinomial(x.abs(), 1) - torch.multinomial(x.abs(), 1), "multinomial"),
        (lambda w, x: nn.functional.dropout(x, 0.5, True) - nn.functional.dropout(x, 0.5, True), "dropout"),
        (lambda w, x: torch.empty(4) * x + torch.empty(4), "empty"),
        (lambda w, x: torch.empty_like(x) + torch.empty_like(x), "empty_like"),
        (lambda w, x: x.new_empty(4) * x + x.new_empty(4), "empty"),
    ],
)
def test_what_differs_from_call_to_call_is_never_merged(function, operator):
    module = functional_graph(function, X)
    count = sum(operator in name for name in operators(module))
    assert count >= 2
    Canonicalize()(module)
    assert sum(operator in name for name in operators(module)) == count


def test_dropout_in_training_is_no_no_op():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3, 4)
    node = graph.call_function(aten.dropout.default, (x, 0.5, True))
    node.meta["val"] = torch.empty(3, 4)
    relu = graph.call_function(aten.relu.default, (node,))
    relu.meta["val"] = torch.empty(3, 4)
    graph.output(relu)
    module = GraphModule(nn.Module(), graph)
    Canonicalize()(module)
    assert operators(module) == ["aten.dropout.default", "aten.relu.default"]


@pytest.mark.parametrize("target", [aten.add_.Tensor, aten.copy_.default, aten.relu_.default])
def test_a_graph_with_operators_in_place_is_refused_and_left_as_it_is(target):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    arguments = (x,) if target is aten.relu_.default else (x, x)
    graph.output(graph.call_function(target, arguments))
    module = GraphModule(nn.Module(), graph)
    before = str(graph)
    with pytest.raises(GraphInvariantError, match="changes its input"):
        Canonicalize()(module)
    assert str(module.graph) == before


def test_two_names_of_one_tensor_become_one():
    root = nn.Module()
    root.first, root.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    root.second.weight = root.first.weight
    root.third = nn.Linear(4, 4, bias=False)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3, 4)
    total = x
    for name in ("first", "second", "third"):
        weight = graph.get_attr(f"{name}.weight")
        weight.meta["val"] = torch.empty(4, 4)
        total = graph.call_function(aten.linear.default, (total, weight))
        total.meta["val"] = torch.empty(3, 4)
    graph.output(total)
    module = GraphModule(root, graph)
    expected = module(X)
    result = Canonicalize()(module)
    assert result is not None
    assert result.modified
    assert [name for name, _ in module.named_parameters()] == ["first.weight", "third.weight"]
    assert torch.equal(module(X), expected)


def test_state_that_nothing_uses_is_dropped():
    _, module = canonical(lambda w, x: x.relu(), X)
    assert list(module.parameters()) == []


def test_a_graph_that_is_canonical_is_reported_unchanged():
    module = functional_graph(lambda w, x: (x @ w).relu(), X)
    first, second = Canonicalize()(module), Canonicalize()(module)
    assert first is not None
    assert second is not None
    assert first.modified
    assert not second.modified


def test_writes_into_state_and_inputs_are_erased_and_named():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Tensor
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.sum(0)
            x.mul_(2)
            return self.seen + x

    model = Counter()
    exported = torch.export.export(model, (X.clone(),)).run_decompositions({})
    module = exported.module()
    module._forward_pre_hooks.clear()
    assert sorted(erase_state_writes(module)) == ["seen", "x"]
    Canonicalize()(module)
    x = X.clone()
    assert torch.equal(module(x), X.sum(0) + 2 * X)
    assert torch.equal(x, X)
    assert torch.equal(model.get_buffer("seen"), torch.zeros(4))
    assert erase_state_writes(module) == []
