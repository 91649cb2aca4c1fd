from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from passes.serving.sums_as_products import SumsAsProducts
from tests.passes.serving_checks import graph_of, operators, rewritten


class Sums(nn.Module):
    """One sum over some axes of [batch, 6, 4, 1]."""

    def __init__(self, axes: tuple[int, ...], *, keepdim: bool) -> None:
        super().__init__()
        self.axes, self.keepdim = axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return (x * x).sum(self.axes, keepdim=self.keepdim)


def inputs(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 6, 4, 1, dtype=torch.float64),)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize(("axes", "kept"), [((2,), 6), ((-2, -1), 6), ((1, 2), 1), ((1, 2, 3), 1)])
def test_a_sum_along_the_last_axes_is_a_product_with_ones(axes: tuple[int, ...], kept: int, keepdim: bool) -> None:
    packed = rewritten(graph_of(Sums(axes, keepdim=keepdim), *inputs(3)), SumsAsProducts(), inputs=inputs)
    found = operators(packed)
    assert found["sum"] == 0
    assert found["mm" if kept == 1 else "matmul"] == 1


@pytest.mark.parametrize("axes", [(1,), (0,), (0, 2), (3,)])
def test_a_sum_over_rows_or_over_numbers_that_lie_apart_stays(axes: tuple[int, ...]) -> None:
    graph = graph_of(Sums(axes, keepdim=False), *inputs(3))
    done = SumsAsProducts()(graph)
    assert done is not None
    assert not done.modified
    assert operators(graph)["sum"] == 1


class Counted(nn.Module):
    """A sum of integers, and two sums of one length."""

    def forward(self, x: Tensor) -> Tensor:
        return x.long().sum(1) + x.exp().sum(1) + x.sin().sum(1)


def test_integers_stay_a_sum_and_sums_of_one_length_share_their_ones() -> None:
    def rows(count: int) -> tuple[Tensor, ...]:
        return (torch.randn(count, 5, dtype=torch.float64),)

    packed = rewritten(graph_of(Counted(), *rows(3)), SumsAsProducts(), inputs=rows)
    assert (operators(packed)["sum"], operators(packed)["mm"]) == (1, 2)
    assert [name for name, _ in packed.named_buffers()] == ["ones"]
