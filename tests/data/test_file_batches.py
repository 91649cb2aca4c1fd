"""Data files as batches: columns find their inputs, and values keep their meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from afm_fx.data.data_files import ArrayFile
from afm_fx.data.file_batches import FileBatches
from afm_fx.errors import BatchError
from afm_fx.program.capture import capture


class DictModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.out = nn.Linear(5, 1)

    def forward(self, features):
        return self.out(torch.cat([self.table(features["item"]), features["price"]], dim=1))


class TupleModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, item, weight):
        return self.table(item).sum(1) * weight


class MatrixModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        return self.out(x)


@pytest.fixture(scope="module")
def dict_program():
    return capture(DictModel(), {"item": torch.tensor([1, 2]), "price": torch.rand(2, 1)})


@pytest.fixture(scope="module")
def matrix_program():
    return capture(MatrixModel(), torch.rand(2, 3))


def data(**arrays):
    return ArrayFile(Path("data.npz"), arrays)


def test_columns_of_labels_come_beside_the_inputs_one_task_each(dict_program):
    file = data(item=np.arange(5), price=np.ones(5), click=np.array([0, 1, 1, 0, 1]), buy=np.array([0, 0, 1, 0, 0.5]))
    (inputs, labels), *_ = FileBatches(file, dict_program, 3, labels=("click", "buy"))
    assert inputs[0]["item"].tolist() == [0, 1, 2]
    assert labels.tolist() == [[0, 0], [1, 0], [1, 1]]
    (_, one), *_ = FileBatches(file, dict_program, 3, labels=("click",))
    assert one.shape == (3, 1)
    with pytest.raises(BatchError, match="no column 'bought'; it has"):
        FileBatches(file, dict_program, 3, labels=("bought",))


def test_columns_of_labels_are_no_features_of_a_model_of_one_tensor(matrix_program):
    file = data(click=np.array([0, 1]), a=np.full(2, 2.0), b=np.full(2, 3.0), c=np.full(2, 4.0))
    ((inputs, labels),) = FileBatches(file, matrix_program, labels=("click",))
    assert inputs[0].tolist() == [[2, 3, 4]] * 2
    assert labels.tolist() == [[0], [1]]


def test_columns_fill_a_dict_by_key_whatever_their_order_and_others_are_left_out(dict_program):
    file = data(label=np.ones(5), price=np.linspace(0, 1, 5), item=np.arange(5, dtype=np.int32))
    batches = list(FileBatches(file, dict_program, batch_size=2))
    assert len(batches) == len(FileBatches(file, dict_program, batch_size=2)) == 3
    outputs = torch.cat([dict_program.run(batch) for batch in batches])
    whole = {"item": torch.arange(5), "price": torch.linspace(0, 1, 5).unsqueeze(1)}
    torch.testing.assert_close(outputs, dict_program.run((whole,)))


def test_batches_can_be_gone_through_twice(dict_program):
    batches = FileBatches(data(price=np.zeros(5), item=np.arange(5)), dict_program, batch_size=3)
    assert len(list(batches)) == len(list(batches)) == 2


def test_positional_inputs_are_found_by_the_names_of_the_arguments():
    program = capture(TupleModel(), (torch.tensor([1, 2]), torch.rand(2)))
    (batch,) = FileBatches(data(weight=np.arange(3.0), item=np.array([4, 5, 6])), program)
    assert torch.equal(batch[0], torch.tensor([4, 5, 6]))
    assert torch.equal(batch[1], torch.tensor([0.0, 1.0, 2.0]))


def test_one_tensor_takes_the_only_array_or_one_column_for_each_of_its_own(matrix_program):
    matrix = np.arange(12.0).reshape(4, 3)
    (whole,) = FileBatches(data(features=matrix), matrix_program)
    (stacked,) = FileBatches(data(a=matrix[:, 0], b=matrix[:, 1], c=matrix[:, 2]), matrix_program)
    assert torch.equal(whole[0], torch.from_numpy(matrix).float())
    assert torch.equal(stacked[0], whole[0])


def test_columns_select_and_order(matrix_program):
    file = data(label=np.zeros(2), c=np.full(2, 3), b=np.full(2, 2), a=np.full(2, 1))
    (batch,) = FileBatches(file, matrix_program, columns=["a", "b", "c"])
    assert torch.equal(batch[0], torch.tensor([[1.0, 2.0, 3.0]] * 2))
    with pytest.raises(BatchError, match=r"takes 3 columns, 'data.npz' has 4: 'label', 'c', 'b', 'a'.*--columns"):
        FileBatches(file, matrix_program)
    with pytest.raises(BatchError, match="no column 'lable' \\(did you mean 'label'\\?\\)"):
        FileBatches(file, matrix_program, columns=["lable"])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"itme": np.arange(4)}, "input 'item' \\(did you mean 'itme'\\?\\); missing 'item'"),
        ({"item": np.array([1, 2.5, 3, 4])}, "column 'item': the model takes whole numbers .*; row 1 holds 2.5"),
        ({"item": np.array([1, 2, np.nan, 4])}, "column 'item': the model takes torch.int64; row 2 holds nan"),
        ({"item": np.array(list("abcd"))}, "column 'item' holds text"),
        ({"item": np.array([1, 2, 3, 2**63], dtype=np.uint64)}, "cannot hold every value; row 3"),
        ({"price": np.array([0, 1, 2, 2**24 + 1])}, "torch.float32, which cannot hold every value; row 3"),
        ({"price": np.zeros((4, 2))}, "column 'price' has shape \\[rows, 2\\].*takes \\[batch, 1\\]"),
    ],
)
def test_what_does_not_fit_is_named_with_file_column_and_row(dict_program, wrong, says):
    columns = {"item": np.arange(4), "price": np.zeros(4)}
    if "itme" in wrong:
        del columns["item"]
    with pytest.raises(BatchError, match=f"'data.npz'.*{says}"):
        list(FileBatches(data(**{**columns, **wrong}), dict_program))


def test_rows_are_counted_from_the_start_of_the_file(dict_program):
    items = np.arange(10.0)
    items[7] = 0.5
    with pytest.raises(BatchError, match=r"row 7 holds 0.5"):
        list(FileBatches(data(item=items, price=np.zeros(10)), dict_program, batch_size=3))


def test_measurements_may_be_rounded_and_whole_floats_are_ids(dict_program):
    (batch,) = FileBatches(data(item=np.array([3.0, 4.0]), price=np.array([0.1, np.nan])), dict_program)
    assert torch.equal(batch[0]["item"], torch.tensor([3, 4]))
    assert batch[0]["price"].dtype == torch.float32
    assert batch[0]["price"][0] == pytest.approx(0.1)


def test_a_batch_of_no_rows_is_refused(dict_program):
    with pytest.raises(BatchError, match="at least 1"):
        FileBatches(data(item=np.arange(2), price=np.zeros(2)), dict_program, batch_size=0)
