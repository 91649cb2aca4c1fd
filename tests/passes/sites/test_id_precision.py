from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_fx.program.capture import capture
from passes.sites.id_precision import CoarseIds, coarse_ids, exact_integers

HALF_LIMIT = 2**11


class Table(nn.Module):
    """A table that half-precision ids cannot tell apart, so that tests stay small."""

    def __init__(self, rows: int = HALF_LIMIT + 1) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 2)

    def ids(self, x: Tensor) -> Tensor:
        return x.long()

    def forward(self, x: Tensor) -> Tensor:
        return self.table(self.ids(x))


def found(model: nn.Module, example: Tensor) -> list[CoarseIds]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        return list(coarse_ids(capture(model, example).graph_module))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_exact_integers_is_where_neighbours_first_collide(dtype):
    limit = exact_integers(dtype)
    assert torch.tensor(limit - 1).to(dtype).long() == limit - 1
    assert torch.tensor(limit).to(dtype).long() == limit
    assert torch.tensor(limit + 1).to(dtype).long() != limit + 1


def test_known_limits():
    assert exact_integers(torch.float32) == 2**24
    assert exact_integers(torch.float16) == HALF_LIMIT


def test_table_dtype_and_limit_are_named():
    example = torch.zeros(3, 2, dtype=torch.float16)
    assert found(Table(), example) == [CoarseIds("table.weight", HALF_LIMIT + 1, torch.float16, HALF_LIMIT)]


def test_a_table_within_the_limit_is_fine():
    assert found(Table(HALF_LIMIT), torch.zeros(3, 2, dtype=torch.float16)) == []
    assert found(Table(), torch.zeros(3, 2, dtype=torch.float32)) == []


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integer_ids_are_fine(dtype):
    assert found(Table(), torch.zeros(3, 2, dtype=dtype)) == []


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x[:, :1].long(),
        lambda x: x[:, 0].long(),
        lambda x: x.long()[:, 1],
        lambda x: torch.cat([x[:, :1], x[:, 1:]], 1).long(),
        lambda x: torch.stack(list(x.unbind(1)), 1).long(),
        lambda x: x.split(1, dim=1)[1].long(),
        lambda x: x.reshape(-1).long() + 7,
        lambda x: x.long() % 5,
        lambda x: x.long().clamp(max=100),
        lambda x: x.t().contiguous().long(),
        lambda x: x.round().int(),
        lambda x: torch.where(x > 0, x.long(), 0),
        lambda x: x.float().long(),
    ],
)
def test_ids_are_followed_through_moves_offsets_and_hashes(move):
    class Moved(Table):
        def ids(self, x: Tensor) -> Tensor:
            return move(x)

    assert [coarse.table for coarse in found(Moved(), torch.zeros(3, 2, dtype=torch.float16))] == ["table.weight"]


def test_ids_made_by_counting_or_binning_floats_are_fine():
    class Binned(Table):
        def ids(self, x: Tensor) -> Tensor:
            return torch.bucketize(x, torch.arange(10.0).half())

    assert found(Binned(), torch.zeros(3, 2, dtype=torch.float16)) == []


@pytest.mark.parametrize("how", ["bag", "index", "index_select"])
def test_other_ways_to_look_rows_up_are_seen(how):
    class Other(Table):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag.from_pretrained(self.table.weight.detach(), mode="sum")

        def forward(self, x: Tensor) -> Tensor:
            if how == "bag":
                return self.bag(x.long())
            weight = self.table.weight
            return weight[x.long()] if how == "index" else weight.index_select(0, x[:, 0].long())

    assert len(found(Other(), torch.zeros(3, 2, dtype=torch.float16))) == 1


def test_each_table_is_reported_once():
    class Twice(Table):
        def forward(self, x: Tensor) -> Tensor:
            return self.table(x[:, 0].long()) + self.table(x[:, 1].long())

    assert len(found(Twice(), torch.zeros(3, 2, dtype=torch.float16))) == 1
