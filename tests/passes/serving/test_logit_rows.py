from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes.serving.logit_rows import LEAST_FEATURES, LogitRows
from tests.passes.serving_checks import graph_of, operators, rewritten


class Logit(nn.Module):
    """A sum of products of one output, started by a term that is none, read before and behind its sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(torch.randn(LEAST_FEATURES, 1)), nn.Parameter(torch.randn(3, 1))
        self.wide = nn.Parameter(torch.randn(LEAST_FEATURES, 2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        logit = torch.addmm(torch.addmm(y[:, :1].exp(), x, self.one), y, self.other)
        return torch.sigmoid(logit), logit * 2, x @ self.wide


def inputs(rows: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, LEAST_FEATURES, dtype=torch.float64), torch.randn(rows, 3, dtype=torch.float64)


def test_a_chain_of_products_stays_a_row_until_something_else_reads_it() -> None:
    packed = rewritten(graph_of(Logit(), *inputs(3)), LogitRows(), inputs=inputs)
    shapes = [int(node.meta["val"].shape[0]) for node in packed.graph.nodes if "addmm" in str(node.target)]
    assert shapes == [1, 1]
    found = operators(packed)
    assert (found["addmm"], found["transpose"], found["sigmoid"]) == (2, 2, 1)
    assert found["reshape"] == 3  # the first term, the logit, its sigmoid
    again = LogitRows()(packed)
    assert again is not None
    assert not again.modified


def test_gradients_reach_the_weights() -> None:
    packed = rewritten(graph_of(Logit(), *inputs(3)), LogitRows(), inputs=inputs)
    packed(*inputs(4))[0].sum().backward()
    trained = {name: each.grad is not None for name, each in packed.named_parameters()}
    assert trained["one_row.weight"]
    assert trained["other_row.weight"]


class Product(nn.Module):
    """One product."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, outputs))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x[:, : len(self.weight)] @ self.weight


@pytest.mark.parametrize(("features", "outputs"), [(LEAST_FEATURES, 2), (LEAST_FEATURES - 1, 1)])
def test_products_of_several_outputs_and_chains_of_few_features_stay(features: int, outputs: int) -> None:
    graph = graph_of(Product(features, outputs), *inputs(3))
    done = LogitRows()(graph)
    assert done is not None
    assert not done.modified
