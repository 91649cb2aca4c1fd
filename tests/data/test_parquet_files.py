"""Folders of Parquet files: their columns, and any rows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from afm_fx.data.data_files import open_data
from afm_fx.data.file_batches import FileBatches
from afm_fx.errors import BatchError, FileFormatError
from afm_fx.program.capture import capture

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = 53


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """Two days of two halves, row groups of 5 rows: an id, a list, and text with missing values that nobody reads."""
    folder, start = tmp_path_factory.mktemp("data") / "log", 0
    for day, hour, rows in ((0, "am", 12), (0, "pm", 20), (1, "am", 1), (1, "pm", 20)):
        path = folder / f"day={day}" / f"hour={hour}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        ids = range(start, start + rows)
        table = {"id": ids, "pair": [[row, -row] for row in ids], "note": [None if row % 2 else "x" for row in ids]}
        parquet.write_table(pa.table(table), path, row_group_size=5)
        start += rows
    (folder / "_SUCCESS").touch()
    return folder


def test_a_folder_is_its_files_rows_in_order_in_chunks_that_cross_files(log):
    file = open_data(log)
    assert file.rows == ROWS
    assert set(file.names) == {"id", "pair", "note"}
    chunks = list(file.chunks(["id", "pair"], 8))
    assert [len(chunk["id"]) for chunk in chunks] == [8] * 6 + [5]
    np.testing.assert_array_equal(np.concatenate([chunk["id"] for chunk in chunks]), np.arange(ROWS))
    np.testing.assert_array_equal(chunks[6]["pair"][:, 1], -np.arange(48, ROWS))


def test_any_rows_of_a_folder_or_a_file_can_be_read(log):
    for path in (log, log / "day=0" / "hour=pm" / "part-0.parquet"):
        file = open_data(path)
        first = 12 if path.is_file() else 0
        for start in range(0, file.rows, 3):
            for stop in (start, start + 1, start + 5, start + 13, file.rows):
                stop = min(stop, file.rows)  # noqa: PLW2901 - the end
                chunks = list(file.chunks(["id", "pair"], 4, start, stop))
                assert [len(chunk["id"]) for chunk in chunks[:-1]] == [4] * (len(chunks) - 1)
                found = np.concatenate([np.empty(0), *(chunk["id"] for chunk in chunks)])
                np.testing.assert_array_equal(found, np.arange(first + start, first + stop))


def test_row_groups_without_rows_that_are_asked_for_are_not_read(log, monkeypatch):
    read, file = [], open_data(log)
    iter_batches = parquet.ParquetFile.iter_batches

    def watched(self, *, row_groups, **options):
        read.append(row_groups)
        return iter_batches(self, row_groups=row_groups, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", watched)
    list(file.chunks(["id"], 8, 18, 34))
    assert read == [[1, 2, 3], [0], [0]]


def test_shares_of_a_folder_together_are_all_batches(log):
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(ROWS, 2)

        def forward(self, id):  # noqa: A002 - the column's name
            return self.table(id).sum(1)

    ids = torch.zeros(2, dtype=torch.int64)
    batches = FileBatches(open_data(log), capture(Model(), {"id": ids}), batch_size=6)
    whole = list(batches)
    assert len(whole) == len(batches)
    assert whole[5]["id"].tolist() == list(range(30, 36))
    assert whole[0]["id"].dtype == torch.int64
    second, first = batches.share(1, 2), batches.share(0, 2)
    shared = torch.cat([batch["id"] for batch in (*first, *second)])
    assert torch.equal(torch.cat([batch["id"] for batch in whole]), shared)


def test_a_folder_may_be_named_from_the_working_directory(log, monkeypatch):
    (log.parent / "other").mkdir()
    monkeypatch.chdir(log.parent / "other")
    assert [chunk["id"].tolist() for chunk in open_data(Path("../log")).chunks(["id"], ROWS)] == [list(range(ROWS))]


def test_what_is_wrong_with_a_folder_is_said_with_the_file(log, tmp_path):
    with pytest.raises(BatchError, match=r"hour=am.part-0.parquet', column 'note': row 1 is missing"):
        list(open_data(log).chunks(["note"], 8))
    with pytest.raises(FileFormatError, match="no Parquet files"):
        open_data(tmp_path)
    parquet.write_table(pa.table({"id": [1, 2], "more": [3, 4]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"id": [3]}), tmp_path / "b.parquet")
    with pytest.raises(BatchError, match=r"b.parquet' has no column 'more'"):
        open_data(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(FileFormatError, match=r"b.parquet' cannot be read"):
        open_data(tmp_path)
