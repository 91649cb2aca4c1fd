"""What random models found wrong, each as a model that a person would write."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import afm_fx
from tests.fast_capture import fast_capture
from tests.passes.rewrite_check import check_rewrite

ROWS, WIDTH = 7, 4


class OwnParameters(nn.Module):
    """Table and weight are parameters of the model itself: their names lead to no module that could hold codes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.map = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        looked_up = functional.embedding(ids[:, 0], self.table)
        return functional.linear(looked_up, self.map) + looked_up.relu().sum(1, keepdim=True) + dense[:, :1]


class DenseTwice(nn.Module):
    """A Linear reads dense features twice beside a table: a code holds them once, the original weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.first = nn.Linear(WIDTH + 6, 3)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        scaled = dense / 3.0
        return self.first(torch.cat([scaled, self.table(ids[:, 0]), scaled], 1))


class FieldsAndTheirSum(nn.Module):
    """A Linear reads one code through several views: the fields, their sum, and a dense row between them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.other = nn.Embedding(ROWS, 3), nn.Embedding(ROWS, 3)
        self.first = nn.Linear(6 * 3, 3)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        one = self.table(ids[:, 0])
        fields = torch.stack([one, one, self.other(ids[:, 1]), dense, one], 1)
        return self.first(torch.cat([fields.sum(1, keepdim=True), fields], 1).flatten(1))


class MappedFieldsAndTheirSum(FieldsAndTheirSum):
    """The same behind a constant matrix, which gives the dense row a decoder as well."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.randn(3, 3))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        fields = torch.stack([self.table(ids[:, 0]), dense, self.other(ids[:, 1])], 1) @ self.map
        return self.first(torch.cat([fields, fields.sum(1, keepdim=True), fields[:, :2]], 1).flatten(1))


class LinearAcrossFields(nn.Module):
    """A factored Linear along the fields, of what a factored Linear along the features gives."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 3)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 5)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.second(self.first(self.table(ids)).transpose(1, 2)).flatten(1) + dense.sum(1, keepdim=True)


class LargestOfFieldsTwice(nn.Module):
    """An operator of several results, called twice alike: both calls become one, of which both results are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.first = nn.Linear(2 * WIDTH, 3)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        rows = self.table(ids)
        largest = torch.cat([rows.max(1)[0], rows.max(1)[1].to(dense.dtype)], 1)
        return self.first(largest) + dense.sum(1, keepdim=True)


MODELS = [OwnParameters, DenseTwice, FieldsAndTheirSum, MappedFieldsAndTheirSum, LinearAcrossFields]


@pytest.mark.parametrize("build", MODELS)
def test_the_rewrite_is_exact_and_its_count_right(build: type[nn.Module]) -> None:
    program = afm_fx.capture(build().double(), batch(5))
    for seed in range(4):
        check_rewrite(program, batch, seed=seed)


def test_equal_calls_with_several_results_become_one() -> None:
    graph = fast_capture(LargestOfFieldsTwice().double(), batch(5)).graph_module.graph
    assert sum(node.target is torch.ops.aten.max.dim for node in graph.nodes) == 1


def batch(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, ROWS, (rows, 2)), torch.randn(rows, 3, dtype=torch.float64)
