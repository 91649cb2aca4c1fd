from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from afm_fx.io.tensor_files import load_tensors, save_tensors


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path, umask: int) -> None:
    save_tensors(tmp_path / "file", "thing", 1, {}, {"one": torch.ones(2)}, force=False)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_views_of_one_memory_are_saved_as_tensors_of_their_own(tmp_path: Path) -> None:
    column = torch.arange(4.0).reshape(4, 1)
    save_tensors(tmp_path / "file", "thing", 1, {}, {"column": column, "row": column.T}, force=False)
    _, loaded = load_tensors(tmp_path / "file", "thing", 1)
    assert torch.equal(loaded["column"], column)
    assert torch.equal(loaded["row"], column.T)


def test_nothing_but_the_file_is_left_where_it_was_written(tmp_path: Path) -> None:
    save_tensors(tmp_path / "file", "thing", 1, {}, {"one": torch.ones(2)}, force=False)
    save_tensors(tmp_path / "file", "thing", 1, {}, {"one": torch.zeros(2)}, force=True)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
