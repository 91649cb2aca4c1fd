from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_constants import FoldConstants
from passes.serving.collapse_moves import CollapseMoves
from tests.passes.serving_checks import graph_of, operators, rewritten


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.weight, *inputs)


def cube(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 6, 4).double(),)


def both(rows: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, 6, 4).double(), torch.randn(rows, 3).double()


@pytest.mark.parametrize(
    ("function", "inputs", "left"),
    [
        pytest.param(
            lambda w, x: torch.cat([x[:, field] for field in range(6)], 1).relu(), cube,
            {"reshape": 1, "relu": 1}, id="all fields side by side are a reshape",
        ),
        pytest.param(
            lambda w, x: torch.stack([x[:, field, 1:3] for field in range(6)], 1).relu(), cube,
            {"slice": 1, "relu": 1}, id="the same columns of all fields are a slice",
        ),
        pytest.param(
            lambda w, x: torch.cat([x[:, field] for field in (5, 0, 3, 2, 4)], 1).relu(), cube,
            {"index_select": 1, "reshape": 1, "relu": 1}, id="fields in another order are picked",
        ),
        pytest.param(
            lambda w, x, d: torch.cat([x[:, 0], x[:, 1], x[:, 2], d[:, :1], d[:, 1:]], 1).relu(), both,
            {"slice": 1, "reshape": 1, "cat": 1, "relu": 1}, id="two sources are two pieces",
        ),
        pytest.param(
            lambda w, x: torch.cat([x[:, 0], x[:, 1]], 1).relu() + x[:, 0:2].reshape(-1, 8).exp(), cube,
            {"slice": 1, "reshape": 1, "relu": 1, "exp": 1, "add": 1}, id="equal tensors are made once",
        ),
        pytest.param(
            lambda w, x: torch.cat([x[:, field : field + 1, : 3 - field % 2] for field in range(4)], 2).relu(), cube,
            {"slice": 4, "cat": 1, "reshape": 2, "relu": 1}, id="pieces of one source are cut and joined flat",
        ),
        pytest.param(
            lambda w, x: (
                torch.cat([x[:, 0:1, :2], x[:, 2:3, :3], x[:, 4:5, 1:3]], 2).relu()
                + torch.cat([x[:, 0, :2], x[:, 2, :3], x[:, 4, 1:3]], 1).exp().unsqueeze(1)
            ), cube,
            {"slice": 3, "cat": 1, "reshape": 2, "relu": 1, "exp": 1, "unsqueeze": 1, "add": 1},
            id="tensors of the same features in another shape are joined once",
        ),
        pytest.param(
            lambda w, x: x.transpose(1, 2).relu(), cube, {"transpose": 1, "relu": 1}, id="a transpose stays",
        ),
        pytest.param(
            lambda w, x: x.flip(0)[:, 1].relu(), cube, {"flip": 1, "select": 1, "relu": 1}, id="a move of rows stays",
        ),
    ],
)  # fmt: skip
def test_moves_collapse(function, inputs, left):
    graph = rewritten(
        graph_of(Function(function), *inputs(3)), CollapseMoves(), FoldConstants(), Canonicalize(), inputs=inputs
    )
    assert {name: count for name, count in operators(graph).items() if name != "sym_size"} == left


def test_constants_are_computed_once_and_zeros_go():
    def function(weight: Tensor, x: Tensor) -> Tensor:
        return x.new_zeros((x.shape[0], 6, 4)) + x @ (weight @ weight.T).relu()

    graph = rewritten(graph_of(Function(function), *cube(3)), FoldConstants(), inputs=cube)
    assert operators(graph) == {"matmul": 1}
