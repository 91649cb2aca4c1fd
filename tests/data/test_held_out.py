"""Rows kept back: none is lost, none is in both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.data.data_files import open_data
from afm_fx.data.file_batches import FileBatches
from afm_fx.data.held_out import EVERY, HoldOut
from afm_fx.errors import BatchError, CalibrationError
from tests.graphs import Tower, tower_batch


def program() -> afm_fx.Program:
    return afm_fx.capture(Tower(), tower_batch(4))


def test_every_row_is_in_exactly_one_part() -> None:
    batches = [tower_batch(rows) for rows in (7, 1, 30, 2)]
    held = HoldOut(program(), iter(batches), 100)
    rest = torch.cat([dense for _, dense in held])
    back = torch.cat([dense for _, dense in held.rows])
    every = torch.cat([dense for _, dense in batches])
    assert len(back) == len(every) // EVERY
    assert sorted(torch.cat([rest, back])[:, 0].tolist()) == sorted(every[:, 0].tolist())


def test_no_more_rows_are_kept_back_than_asked_for_and_the_rest_is_untouched() -> None:
    batches = [tower_batch(50) for _ in range(3)]
    held = HoldOut(program(), batches, 4)
    rest = list(held)
    assert sum(len(dense) for _, dense in held.rows) == 4
    assert rest[1] is batches[1]
    assert len(held) == 3


def test_dict_and_one_tensor_batches_keep_their_form() -> None:
    ids, dense = tower_batch(20)
    by_name = HoldOut(afm_fx.capture(Tower(), {"ids": ids, "dense": dense}), [{"ids": ids, "dense": dense}], 10)
    assert set(next(iter(by_name))) == {"ids", "dense"}
    assert set(by_name.rows[0]) == {"ids", "dense"}
    single = HoldOut(afm_fx.capture(torch.nn.Linear(3, 1), torch.randn(4, 3)), [torch.randn(20, 3)], 10)
    assert [part.shape for part in next(iter(single))] == [(16, 3)]


def test_a_model_of_one_dict_gets_a_dict() -> None:
    class OfOneDict(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = Tower()

        def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.tower(features["ids"], features["dense"])

    batch = dict(zip(("ids", "dense"), tower_batch(20), strict=True))
    program = afm_fx.capture(OfOneDict(), batch)
    held = HoldOut(program, [batch], 10)
    (rest,) = held
    for inputs, rows in ((rest, 16), (held.rows[0], 4)):
        (features,) = inputs
        assert {name: len(each) for name, each in features.items()} == {"ids": rows, "dense": rows}
        assert program.run(inputs).shape == (rows, 1)


def test_a_batch_that_does_not_fit_is_passed_on_for_others_to_name() -> None:
    bad = (torch.zeros(3, 9),)
    assert list(HoldOut(program(), [bad], 10)) == [bad]


class Two(nn.Module):
    """A table read by a column of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(50, 4), nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, item: Tensor, price: Tensor) -> Tensor:
        return self.linear(torch.cat([self.table(item), price.unsqueeze(1)], 1))


ROWS_OF_FILE, BATCH_OF_FILE = 300, 64


def spoilt_file(path: Path, row: int, **values: float) -> Path:
    columns: dict[str, np.ndarray] = {"price": np.random.default_rng(0).random(ROWS_OF_FILE).astype(np.float32),
               "item": np.arange(ROWS_OF_FILE) % 50}  # fmt: skip
    for name, value in values.items():
        columns[name][row] = value
    np.savez(path, **columns)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def two() -> afm_fx.Program:
    return afm_fx.capture(Two().eval(), (torch.zeros(3, dtype=torch.int64), torch.zeros(3)))


@pytest.mark.parametrize("row", [0, 4, 62, 64, 77, 79, 299])  # of kept rows and of rows held back, in all places
def test_errors_name_file_row_and_column_as_the_user_has_them(two: afm_fx.Program, row: int, tmp_path: Path) -> None:
    path = spoilt_file(tmp_path / "rows.npz", row, item=50)
    batches = FileBatches(open_data(path), two, BATCH_OF_FILE)
    said = rf"rows.npz', row {row}: id 50 of column 'item' is outside table 'table' \(ids 0 to 49\)"
    with pytest.raises(BatchError, match=said):
        afm_fx.compress(two, batches, afm_fx.Budget(parameters=0.5))
    with pytest.raises(BatchError, match=said):
        afm_fx.calibrate(two, batches)
    part = row // BATCH_OF_FILE
    with pytest.raises(BatchError, match=said):
        afm_fx.calibrate(two, batches, share=(part, len(batches)))
    path = spoilt_file(tmp_path / "rows.npz", row, price=float("nan"))
    batches = FileBatches(open_data(path), two, BATCH_OF_FILE)
    with pytest.raises(CalibrationError, match=rf"rows.npz', row {row}: column 'price' has the value nan"):
        afm_fx.calibrate(two, batches)


@pytest.mark.parametrize("row", [2, 4, 13])
def test_errors_name_batch_and_row_of_batches_in_memory_too(two: afm_fx.Program, row: int) -> None:
    batches = [(torch.arange(16), torch.rand(16)) for _ in range(3)]
    batches[1][0][row] = -1
    with pytest.raises(BatchError, match=rf"batch 1, row {row}: id -1 of input 'item'"):
        afm_fx.compress(two, batches, afm_fx.Budget(parameters=0.5))
