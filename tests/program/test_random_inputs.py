from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from afm_fx.errors import BatchError
from afm_fx.program.capture import capture
from afm_fx.program.random_inputs import InputRange, random_inputs


class FloatMatrixModel(nn.Module):
    """Ids and dense values travel in one float matrix: columns 0 and 2 are ids, 1 and 3 are dense."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Embedding(3, 4)
        self.large = nn.Embedding(1000, 4)
        self.linear = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.small(x[:, 0:1].long()).squeeze(1)
        second = self.large(x[:, 2:3].long()).squeeze(1)
        return self.linear(torch.cat([first, second, x[:, 1:2], x[:, 3:4]], dim=1))


class StackedTableModel(nn.Module):
    """One stacked table, looked up with per-field offsets."""

    offsets: Tensor

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(rows), 4)
        starts = torch.tensor([0, *rows[:-1]]).cumsum(0)
        self.register_buffer("offsets", starts)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids + self.offsets).sum((1, 2))


class PooledSequenceModel(nn.Module):
    """Mean over the first ``length`` of 5 items, and a mask input beside."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(7, 4)

    def forward(self, items: Tensor, length: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
        positions = torch.arange(items.shape[1])
        mask = (positions < length.unsqueeze(1)) & keep
        pooled = (self.items(items) * mask.unsqueeze(-1)).sum(1) / length.unsqueeze(1)
        return pooled.sum(1) * weight


class SharedIdModel(nn.Module):
    """The same ids are looked up in two tables of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.Embedding(50, 4)
        self.few = nn.Embedding(5, 4)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.many(features["user"]).sum(1) + self.few(features["user"]).sum(1) + features["age"]


def drawn(model: nn.Module, example: object, rows: int = 4000) -> tuple[tuple, dict]:
    return random_inputs(capture(model, example)).draw(rows, seed=3)


def test_id_columns_of_a_float_matrix_cover_their_tables_and_nothing_beyond() -> None:
    (x,), _ = drawn(FloatMatrixModel(), torch.zeros(4, 4))
    assert x.dtype == torch.float32
    assert set(x[:, 0].tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(x[:, 2], x[:, 2].floor())
    assert x[:, 2].min() >= 0
    assert x[:, 2].max() <= 999
    assert len(set(x[:, 2].tolist())) > 900


def test_dense_columns_are_standard_normal() -> None:
    (x,), _ = drawn(FloatMatrixModel(), torch.zeros(4, 4))
    for column in (1, 3):
        assert abs(x[:, column].mean()) < 0.1
        assert abs(x[:, column].std() - 1) < 0.1


def test_offsets_into_a_stacked_table_bound_each_field_by_itself() -> None:
    rows = (3, 10, 2)
    ((ids,), _) = drawn(StackedTableModel(rows), torch.zeros(4, 3, dtype=torch.int64))
    # Only the stacked table's end is a hard bound, so a field may reach beyond its own rows but never beyond the table.
    starts = torch.tensor([0, 3, 13])
    assert ((ids + starts).amax(0) == sum(rows) - 1).all()
    assert (ids.amin(0) == 0).all()


def test_lengths_and_masks_are_sensible() -> None:
    example = (torch.ones(3, 5, dtype=torch.int64), torch.tensor([1, 2, 5]), torch.rand(3), torch.ones(3, 5).bool())
    (items, length, weight, keep), _ = drawn(PooledSequenceModel(), example)
    assert items.min() == 0
    assert items.max() == 6
    assert set(length.tolist()) == {1, 2, 3, 4, 5}
    assert (weight >= 0).all()
    assert keep.dtype == torch.bool
    assert 0.4 < keep.double().mean() < 0.6


def test_the_smallest_table_wins_where_ids_are_shared() -> None:
    ((features,), _) = drawn(SharedIdModel(), {"user": torch.zeros(3, dtype=torch.int64), "age": torch.zeros(3)})
    assert set(features["user"].tolist()) == {0, 1, 2, 3, 4}
    assert list(features) == ["user", "age"]


def test_ids_of_a_bag_are_bounded_by_its_table() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(6, 4, mode="sum")

        def forward(self, items: Tensor) -> Tensor:
            return self.bag(items)

    (items,), _ = drawn(Bag(), torch.zeros(3, 5, dtype=torch.int64))
    assert set(items.flatten().tolist()) == set(range(6))


def test_an_integer_input_of_unknown_meaning_repeats_values_of_the_example() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor, count: Tensor) -> Tensor:
            return x / count

    (_, count), _ = drawn(Scale(), (torch.rand(3), torch.tensor([2, 4, 8])))
    assert set(count.tolist()) == {2, 4, 8}


def test_a_column_of_zeros_and_ones_stays_binary() -> None:
    example = torch.zeros(4, 4)
    example[1, 3] = 1
    (x,), _ = drawn(FloatMatrixModel(), example)
    assert set(x[:, 3].tolist()) == {0.0, 1.0}


def test_every_draw_runs_through_the_program() -> None:
    program = capture(PooledSequenceModel(), (torch.ones(3, 5).long(), torch.tensor([1, 2, 5]), torch.rand(3),
                                              torch.ones(3, 5).bool()))  # fmt: skip
    source = random_inputs(program)
    for rows in (1, 2, 17):
        args, kwargs = source.draw(rows)
        assert program(*args, **kwargs).shape == (rows,)


def test_a_seed_fixes_the_draw_and_another_changes_it() -> None:
    source = random_inputs(capture(FloatMatrixModel(), torch.zeros(4, 4)))
    assert torch.equal(source.draw(8, seed=1)[0][0], source.draw(8, seed=1)[0][0])
    assert not torch.equal(source.draw(8, seed=1)[0][0], source.draw(8, seed=2)[0][0])


def test_a_program_in_float64_gets_float64_inputs() -> None:
    program = capture(FloatMatrixModel(), torch.zeros(4, 4)).to(torch.float64)
    (x,), _ = random_inputs(program).draw(5)
    assert x.dtype == torch.float64
    assert program(x).dtype == torch.float64


def test_ids_too_coarse_for_float32_stay_inside_the_table() -> None:
    last = 2**25 + 3  # float32 rounds it up to 2^25 + 4
    assert torch.tensor(float(last), dtype=torch.float32).double() > last
    ids = InputRange(
        "ids", torch.zeros(2), True, torch.tensor(float(last), dtype=torch.float64),
        torch.tensor(float(last), dtype=torch.float64), torch.tensor(True),
    ).draw(3, torch.Generator())  # fmt: skip
    assert (ids.double() <= last).all()
    assert (ids.double() > last - 8).all()


def test_a_fixed_batch_size_refuses_another() -> None:
    program = capture(FloatMatrixModel(), torch.zeros(4, 4), dynamic_batch=False)
    with pytest.raises(BatchError, match="5 rows"):
        random_inputs(program).draw(5)


def test_where_bags_begin_ascends_from_zero_and_stays_inside_the_ids() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.linear = nn.EmbeddingBag(6, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor, starts: Tensor, dense: Tensor) -> Tensor:
            return self.linear(self.bag(ids, starts)) + dense

    example = torch.zeros(20, dtype=torch.int64), torch.arange(0, 20, 4), torch.zeros(5, 2)
    program = capture(Ragged().eval(), example)
    (ids, starts, _), _ = random_inputs(program).draw(9)
    assert ids.max() < 6
    assert starts.shape == (9,)
    assert starts[0] == 0
    assert bool((starts.diff() >= 0).all())
    assert 0 < starts[-1] <= 20
    assert program(ids, starts, torch.zeros(9, 2)).shape == (9, 2)


def test_where_bags_begin_fits_the_fewest_ids_where_those_are_the_batch() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(6, 4)

        def forward(self, ids: Tensor, starts: Tensor) -> Tensor:
            return self.bag(ids, starts)

    program = capture(Ragged().eval(), (torch.zeros(20, dtype=torch.int64), torch.arange(0, 20, 4)))
    for rows in (1, 30):
        (ids, starts), _ = random_inputs(program).draw(rows)
        assert program(ids, starts).shape == (5, 4)
