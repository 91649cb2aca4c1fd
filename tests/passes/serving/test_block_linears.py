from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes.graph import clone_graph_module
from passes.serving.block_linears import BlockLinears
from passes.serving.collapse_moves import CollapseMoves
from tests.passes.serving_checks import graph_of, operators, rewritten


class Decoders(nn.Module):
    """Restores fields from codes that stand side by side."""

    def __init__(self, fields: int, rank: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.rank = rank
        self.decoders = nn.ModuleList(nn.Linear(rank, width, bias=bias) for _ in range(fields))

    def features(self, codes: Tensor) -> list[Tensor]:
        return [
            decoder(codes[:, self.rank * field : self.rank * (field + 1)])
            for field, decoder in enumerate(self.decoders)
        ]

    def forward(self, codes: Tensor) -> Tensor:
        return torch.cat(self.features(codes), 1).relu()


def codes(columns: int):
    return lambda rows: (torch.randn(rows, columns, dtype=torch.float64),)


@pytest.mark.parametrize("bias", [True, False])
def test_the_decoders_of_many_fields_become_a_few_blocks_that_read_ranges(bias: bool):
    graph = graph_of(Decoders(26, 2, 16, bias=bias), *codes(52)(3))
    result = rewritten(graph, BlockLinears(), CollapseMoves(), inputs=codes(52))
    found = operators(result)
    assert 1 < found["linear"] <= 4
    assert found["slice"] == found["linear"]
    assert found["cat"] == 1


def test_wide_decoders_stay_alone_because_zeros_would_cost_more():
    graph = graph_of(Decoders(4, 32, 64), *codes(128)(3))
    assert operators(rewritten(graph, BlockLinears(), inputs=codes(128)))["linear"] == 4


class Mixed(Decoders):
    """A decoder that something else reads as well, one that stands twice, and a feature between."""

    def forward(self, codes: Tensor) -> Tensor:
        one, two, three, four, five, six = self.features(codes)
        return torch.cat([one, two, codes, three, four, four, five, six], 1).relu() + five.sum(1, keepdim=True)


def test_only_neighbours_that_nothing_else_reads_are_joined_and_the_order_stays():
    graph = graph_of(Mixed(6, 2, 16), *codes(12)(3))
    result = rewritten(graph, BlockLinears(), inputs=codes(12))
    assert operators(result)["linear"] == 5  # the first two became one; each other has a reader or a twin beside it


def test_a_single_block_needs_no_concat_and_a_second_run_changes_nothing():
    graph = graph_of(Decoders(4, 1, 8), *codes(4)(3))
    result = rewritten(graph, BlockLinears(), CollapseMoves(), inputs=codes(4))
    assert operators(result) == {"linear": 1, "relu": 1}
    assert not BlockLinears()(clone_graph_module(result)).modified


def test_gradients_reach_the_blocks():
    result = rewritten(graph_of(Decoders(8, 2, 16), *codes(16)(3)), BlockLinears(), inputs=codes(16))
    result(*codes(16)(5)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in result.parameters())
