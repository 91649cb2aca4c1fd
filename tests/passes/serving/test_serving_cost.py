"""The estimate counts launches, copied bytes, contiguous pieces and multiply-adds of what depends on the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes.serving.serving_cost import (
    BYTES_PER_US,
    LAUNCH_US,
    PIECE_US,
    PRODUCTS_PER_US,
    TOLERANCE,
    ServingCost,
    products,
    serving_cost,
)
from tests.fast_capture import fast_capture

FIELDS, WIDTH, OUTPUTS, FLOAT = 3, 4, 5, 4


class Of(nn.Module):
    def __init__(self, function: Callable[[Of, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(OUTPUTS, WIDTH))
        self.table = nn.Parameter(torch.randn(10, WIDTH))
        self.register_buffer("places", torch.tensor([2, 0]))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.function(self, x, ids)


def cost_of(function: Callable[[Of, Tensor, Tensor], Tensor]) -> ServingCost:
    """Of a function of x [batch, 3, 4] and ids [batch, 3]."""
    inputs = (torch.randn(7, FIELDS, WIDTH), torch.randint(0, 10, (7, FIELDS)))
    return serving_cost(fast_capture(Of(function), inputs).graph_module)


@pytest.mark.parametrize(
    ("function", "features", "pieces", "multiply_adds"),
    [
        (lambda m, x, ids: x.relu(), FIELDS * WIDTH, 0, 0),
        (lambda m, x, ids: x.view(-1, FIELDS * WIDTH), 0, 0, 0),
        (lambda m, x, ids: nn.functional.linear(x, m.weight), FIELDS * OUTPUTS, 0, FIELDS * OUTPUTS * WIDTH),
        (lambda m, x, ids: nn.functional.embedding(ids, m.table), FIELDS * WIDTH, 3 * FIELDS, 0),
        (lambda m, x, ids: x.index_select(1, m.places), 2 * WIDTH, 2, 0),
        (lambda m, x, ids: x.index_select(2, m.places), FIELDS * 2, FIELDS * 2, 0),
        (lambda m, x, ids: torch.cat([x, x, x], 2), 3 * FIELDS * WIDTH, 3, 0),
        (lambda m, x, ids: torch.stack([x, x], 1), 2 * FIELDS * WIDTH, 2, 0),
        (lambda m, x, ids: x[:, 1:], 2 * WIDTH, 1, 0),
        (lambda m, x, ids: x[:, :, 1:3], FIELDS * 2, FIELDS, 0),
        (lambda m, x, ids: x.select(1, 2), WIDTH, 1, 0),
        (lambda m, x, ids: x.select(-1, 2), FIELDS, FIELDS, 0),
    ],
)  # fmt: skip
def test_one_operator_costs_a_launch_and_its_work_per_row(function, features, pieces, multiply_adds) -> None:
    cost = cost_of(function)
    assert cost.per_call == LAUNCH_US
    expected = features * FLOAT / BYTES_PER_US + pieces * PIECE_US + multiply_adds / PRODUCTS_PER_US
    assert cost.per_row == pytest.approx(expected, rel=1e-12)


def test_what_is_the_same_for_every_batch_costs_nothing() -> None:
    assert cost_of(lambda m, x, ids: x + m.weight[:, 1:].sum()) == cost_of(lambda m, x, ids: x + 1)


def test_operators_add_up() -> None:
    one, both = cost_of(lambda m, x, ids: x.relu()), cost_of(lambda m, x, ids: x.relu().exp())
    assert both == ServingCost(2 * one.per_call, 2 * one.per_row)
    assert both.at(10) == both.per_call + 10 * both.per_row


def test_lanes_of_a_product_are_used_by_sixteens() -> None:
    assert [products(3, outputs) for outputs in (1, 16, 17, 32)] == [48, 48, 96, 96]


def test_cheaper_is_what_is_so_at_one_batch_size_and_not_dearer_at_any() -> None:
    cost = ServingCost(10.0, 1.0)
    assert not cost.beats(cost)
    assert ServingCost(9.0, 1.0).beats(cost)
    assert ServingCost(10.0, 0.9).beats(cost)
    assert ServingCost(9.0, 1.0 + TOLERANCE / 2).beats(cost)
    assert not ServingCost(9.0, 1.0 + 2 * TOLERANCE).beats(cost)
    assert not ServingCost(10.0, 1.0 - TOLERANCE / 2).beats(cost)
