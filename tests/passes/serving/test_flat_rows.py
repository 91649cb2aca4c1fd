"""Operators on rows with an axis of one in front, computed on the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes.serving.collapse_moves import CollapseMoves
from passes.serving.flat_rows import FlatRows
from tests.passes.serving_checks import graph_of, operators, rewritten

WIDTH = 6


class Rows(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def inputs(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, WIDTH).double(),)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        pytest.param(lambda m, x: m.linear(x.unsqueeze(1)).flatten(1), {"linear": 1}, id="a Linear"),
        pytest.param(
            lambda m, x: (m.linear(x).view(-1, 1, 3) ** 2).flatten(1).exp(), {"linear": 1, "pow": 1, "exp": 1},
            id="a power between two views",
        ),
        pytest.param(
            lambda m, x: (x.unsqueeze(1) * x.exp().unsqueeze(1)).flatten(1).exp(), {"exp": 2, "mul": 1},
            id="a product of two rows",
        ),
        pytest.param(
            lambda m, x: x.unsqueeze(1).relu(), {"relu": 1, "reshape": 1}, id="what is read with the axis gets it back"
        ),
        pytest.param(
            lambda m, x: (x.unsqueeze(1) * x[:, :4].unsqueeze(2)).relu(),
            {"unsqueeze": 2, "slice": 1, "mul": 1, "relu": 1}, id="an outer product stays",
        ),
        pytest.param(
            lambda m, x: x.view(-1, 2, 3).relu().flatten(1).exp(), {"reshape": 2, "relu": 1, "exp": 1},
            id="an axis longer than one stays",
        ),
        pytest.param(
            lambda m, x: x.unsqueeze(0).relu().squeeze(0).exp(), {"unsqueeze": 1, "relu": 1, "squeeze": 1, "exp": 1},
            id="an axis in front of the batch stays",
        ),
    ],
)  # fmt: skip
def test_rows_are_computed_on_flat(function, left):
    graph = rewritten(graph_of(Rows(function), *inputs(3)), FlatRows(), CollapseMoves(), inputs=inputs)
    assert {name: count for name, count in operators(graph).items() if name != "sym_size"} == left
