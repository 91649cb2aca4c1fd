"""Data files: what each format gives, and what a damaged one says."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from afm_fx.data.data_files import open_data
from afm_fx.errors import BatchError, FileFormatError


def whole(file, size=4):
    parts = list(file.chunks(file.names, size))
    return {name: np.concatenate([part[name] for part in parts]) for name in file.names}


def test_an_npz_file_gives_its_arrays_chunk_by_chunk(tmp_path):
    path = tmp_path / "data.npz"
    arrays = {"id": np.arange(10), "history": np.arange(30).reshape(10, 3)}
    np.savez(path, id=arrays["id"], history=arrays["history"])
    file = open_data(path)
    assert file.names == ("id", "history")
    assert file.rows == 10
    assert [len(chunk["id"]) for chunk in file.chunks(["id"], 4)] == [4, 4, 2]
    for name, array in whole(file).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_an_npy_file_is_one_array(tmp_path):
    path = tmp_path / "features.npy"
    array = np.arange(20.0).reshape(10, 2)
    np.save(path, array)
    np.testing.assert_array_equal(whole(open_data(path))["features"], array)


def test_a_parquet_file_gives_numbers_and_lists_of_equal_length(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "data.parquet"
    pandas.DataFrame({"id": range(10), "history": [[row, -row] for row in range(10)]}).to_parquet(path)
    file = open_data(path)
    assert file.rows == 10
    read = whole(file)
    np.testing.assert_array_equal(read["id"], np.arange(10))
    np.testing.assert_array_equal(read["history"], np.stack([np.arange(10), -np.arange(10)], axis=1))


@pytest.mark.parametrize(
    ("column", "says"),
    [([1.0, 2.0, None], "row 2 is missing"), ([[1, 2], [3, 4], [5]], "differ in length \\(row 2\\)")],
)
def test_a_bad_parquet_column_is_named_with_its_row(tmp_path, column, says):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"wrong": column}), path)
    with pytest.raises(BatchError, match=f"column 'wrong'.*{says}"):
        whole(open_data(path))


@pytest.mark.parametrize("ending", ["npz", "npy", "parquet"])
def test_a_truncated_file_is_told(tmp_path, ending):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / f"data.{ending}"
    numbers = np.arange(1000)
    if ending == "npz":
        np.savez_compressed(path, x=numbers)
    elif ending == "npy":
        np.save(path, numbers)
    else:
        pandas.DataFrame({"x": numbers}).to_parquet(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=f"data.{ending}"):
        whole(open_data(path))


def test_pickled_objects_are_not_read(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FileFormatError, match="not read for safety"):
        open_data(path)


def test_arrays_of_different_length_are_named(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, a=np.arange(3), b=np.arange(4))
    with pytest.raises(BatchError, match="a 3, b 4"):
        open_data(path)


def test_missing_empty_and_foreign_files_are_told(tmp_path):
    with pytest.raises(FileFormatError, match=r"there is no data file"):
        open_data(tmp_path / "none.npz")
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    with pytest.raises(BatchError, match="holds no rows"):
        open_data(tmp_path / "empty.npy")
    with pytest.raises(FileFormatError, match=r"end in \.npz, \.npy, \.parquet, not '\.csv'"):
        open_data(tmp_path / "data.csv")


def test_a_header_that_asks_for_terabytes_is_an_error_of_the_file(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 64)})
    (tmp_path / "rows.npy").write_bytes(header.getvalue() + bytes(64))
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    for name in ("rows.npy", "rows.npz"):
        with pytest.raises(FileFormatError, match=f"{name}.*cannot be read"):
            open_data(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("rows.npz", "rows.npy", "rows.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(FileFormatError, match="no plain file"):
            open_data(tmp_path / name)
