from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes.serving.fold_batch_norm import FoldBatchNorm
from passes.serving.merge_linears import MergeLinears, StartProducts
from passes.serving.row_terms import RowTerms
from tests.passes.serving_checks import graph_of, operators, rewritten
from tests.zoo.entry import randomize

WIDTH = 6


class Layers(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bare, self.one = nn.Linear(WIDTH, 1, bias=False), nn.Linear(WIDTH, 1)
        self.other_bare, self.other_one = nn.Linear(WIDTH, 1, bias=False), nn.Linear(WIDTH, 1)
        self.narrow, self.wide = nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.bias = nn.Parameter(torch.randn(1))
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH))
        randomize(self, torch.Generator().manual_seed(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def twice(model: Layers, x: Tensor) -> Tensor:
    hidden = model.first(x)
    return hidden * 2 + hidden.exp()


def norm_before_two(model: Layers, x: Tensor) -> Tensor:
    normal = model.norm(x.exp())
    return model.first(normal).relu() + model.second(normal)


def inputs(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, WIDTH).double(),)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        pytest.param(lambda m, x: m.second(m.first(x)), {"linear": 1}, id="a Linear of a Linear"),
        pytest.param(lambda m, x: m.wide(m.narrow(x)), {"linear": 2}, id="a bottleneck stays two"),
        pytest.param(lambda m, x: m.second(m.first(x).relu()), {"linear": 2, "relu": 1}, id="an activation parts them"),
        pytest.param(lambda m, x: m.first(x) * 0.5, {"linear": 1}, id="a scale"),
        pytest.param(lambda m, x: m.one(x) + m.bias, {"linear": 1}, id="a constant"),
        pytest.param(lambda m, x: x @ m.matrix, {"linear": 1}, id="a product by a constant"),
        pytest.param(
            lambda m, x: torch.tensordot(x, m.matrix, dims=([-1], [0])), {"linear": 1}, id="a tensordot by a constant"
        ),
        pytest.param(
            lambda m, x: torch.tensordot(x, m.matrix, dims=([-1], [-2])), {"linear": 1}, id="a tensordot, from the end"
        ),
        pytest.param(
            lambda m, x: (x.exp().sum(1, keepdim=True) + m.one(x)) + m.bias,
            {"exp": 1, "sum": 1, "linear": 1, "add": 1}, id="a constant goes to a Linear within the sum",
        ),
        pytest.param(
            lambda m, x: x.exp().sum(1, keepdim=True) + m.bare(x), {"exp": 1, "sum": 1, "addmm": 1},
            id="a product starts from the other term",
        ),
        pytest.param(
            lambda m, x: (m.one(x.exp()) - (m.bare(x) - m.other_one(x.sin()))) * 0.5,
            {"exp": 1, "sin": 1, "linear": 1, "addmm": 2}, id="a scaled difference of Linears is one chain of products",
        ),
        pytest.param(
            lambda m, x: m.first(x.sin()) + m.second(x.exp()), {"sin": 1, "exp": 1, "linear": 1, "addmm": 1},
            id="two biases are one",
        ),
        pytest.param(
            lambda m, x: x.sum(1, keepdim=True) + (m.bare(x.exp()) + m.other_bare(x.sin())),
            {"sum": 1, "exp": 1, "sin": 1, "addmm": 2}, id="a sum of sums is one chain",
        ),
        pytest.param(
            lambda m, x: x - m.first(x).relu(), {"linear": 1, "relu": 1, "sub": 1}, id="a difference of others stays",
        ),
        pytest.param(
            twice, {"linear": 1, "mul": 1, "exp": 1, "add": 1},
            id="a Linear used twice is left alone",
        ),
    ],
)  # fmt: skip
def test_linears_are_merged(function, left):
    graph = rewritten(graph_of(Layers(function), *inputs(3)), MergeLinears(), StartProducts(), inputs=inputs)
    assert operators(graph) == left


@pytest.mark.parametrize(
    ("function", "left"),
    [
        pytest.param(lambda m, x: m.norm(m.first(x)).relu(), {"linear": 1, "relu": 1}, id="after a Linear"),
        pytest.param(lambda m, x: m.second(m.norm(x.exp())), {"exp": 1, "linear": 1}, id="before a Linear"),
        pytest.param(
            norm_before_two,
            {"exp": 1, "linear": 2, "relu": 1, "add": 1}, id="before two Linears",
        ),
        pytest.param(
            lambda m, x: m.norm(x.exp()).relu(),
            {"exp": 1, "_native_batch_norm_legit_no_training": 1, "<built-in function getitem>": 1, "relu": 1},
            id="beside none",
        ),
    ],
)  # fmt: skip
def test_batch_norm_is_folded_into_linears(function, left):
    graph = rewritten(graph_of(Layers(function), *inputs(3)), FoldBatchNorm(), inputs=inputs)
    assert operators(graph) == left


class Factorization(nn.Module):
    """Bias, linear term, pairwise term, deep part."""

    def __init__(self, *, linear_term: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5 + field, 4) for field in range(3))
        self.weights = nn.ModuleList(nn.Embedding(5 + field, 1) for field in range(3))
        self.deep, self.bias = nn.Linear(12, 1), nn.Parameter(torch.randn(1))
        self.linear_term = linear_term
        randomize(self, torch.Generator().manual_seed(3))

    def forward(self, ids: Tensor) -> Tensor:
        vectors = torch.stack([table(ids[:, field]) for field, table in enumerate(self.tables)], 1)
        logit = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True)
        if self.linear_term:
            logit = logit + torch.cat([table(ids[:, field]) for field, table in enumerate(self.weights)], 1).sum(
                1, True
            )
        return torch.sigmoid(logit + self.deep(vectors.flatten(1)) + self.bias)


def ids(rows: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 5, (rows, 3)),)


def test_squared_norms_and_the_bias_become_part_of_the_linear_terms_rows():
    model = Factorization(linear_term=True)
    graph = rewritten(graph_of(model, *ids(3)), RowTerms(), inputs=ids)
    counts = operators(graph)
    assert (counts["square"], counts["mul"], counts["sub"], counts["add"], counts["embedding"]) == (1, 0, 0, 0, 6)
    names = [name for name, _ in graph.named_parameters() if "row_term" in name]
    assert len(names) == 3
    total = sum(parameter.numel() for name, parameter in graph.named_parameters() if "row_term" in name)
    assert total == sum(weight.numel() for weight in model.weights.parameters())


def test_without_a_linear_term_no_table_grows():
    graph = rewritten(graph_of(Factorization(linear_term=False), *ids(3)), RowTerms(), inputs=ids)
    assert operators(graph)["embedding"] == 3
    assert not [name for name, _ in graph.named_parameters() if "row_term" in name]
