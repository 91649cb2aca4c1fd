"""Outputs appear together, or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from afm_fx.errors import OutputExistsError, UserError
from afm_fx.io import output_directory
from afm_fx.io.output_directory import (
    refuse_existing,
    refuse_existing_file,
    staged_outputs,
    staging_directory,
    write_text,
)


def test_files_move_into_place_at_the_end(tmp_path):
    out = tmp_path / "a" / "out"
    with staged_outputs(out, ["x", "y"]) as staging:
        (staging / "x").write_text("new")
        assert not (out / "x").exists()
    assert [file.name for file in out.iterdir()] == ["x"]
    assert [file.name for file in out.parent.iterdir()] == ["out"]


def test_old_outputs_are_replaced_and_stale_ones_go_but_strangers_stay(tmp_path):
    for name in ("x", "y", "stranger"):
        (tmp_path / name).write_text("old")
    with staged_outputs(tmp_path, ["x", "y"]) as staging:
        (staging / "x").write_text("new")
    assert (tmp_path / "x").read_text() == "new"
    assert not (tmp_path / "y").exists()
    assert (tmp_path / "stranger").read_text() == "old"


def test_a_run_that_ends_while_files_move_leaves_no_old_one_beside_a_new_one(tmp_path, monkeypatch):
    for name in ("model", "weights", "stranger"):
        (tmp_path / name).write_text("old")

    def write():
        with staged_outputs(tmp_path, ["model", "weights"]) as staging:
            for name in ("model", "weights"):
                (staging / name).write_text("new")
            moved: list[Path] = []
            replace = Path.replace

            def once(path, target):
                if moved:
                    raise RuntimeError
                moved.append(target)
                return replace(path, target)

            monkeypatch.setattr(Path, "replace", once)

    with pytest.raises(RuntimeError):
        write()
    assert sorted(file.name for file in tmp_path.iterdir()) in (["model", "stranger"], ["stranger", "weights"])
    assert [file.read_text() for file in tmp_path.iterdir() if file.name != "stranger"] == ["new"]


class RunEndedError(BaseException):
    """What stands for a process that ends."""


@contextlib.contextmanager
def ending_after(allowed: int) -> Iterator[list[int]]:
    """Ends the run at one of the steps in which it changes names; counts them."""
    steps = [0]

    def ending(step):
        def call(*args, **kwargs):
            if steps[0] >= allowed:
                raise RunEndedError
            steps[0] += 1
            return step(*args, **kwargs)

        return call

    def exchange():
        return ending(renameat2())

    renameat2 = output_directory._renameat2
    with pytest.MonkeyPatch.context() as patched:
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "fsync"), (Path, "chmod")):
            patched.setattr(owner, name, ending(getattr(owner, name)))
        patched.setattr(output_directory, "_renameat2", exchange)
        yield steps


def contents(directory: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in directory.iterdir()} if directory.exists() else {}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two directories in one step")
@pytest.mark.parametrize("before", [{}, {"model": "old", "weights": "old", "page": "old"}], ids=["first time", "force"])
def test_a_run_that_ends_at_any_step_leaves_the_old_outputs_or_the_new_ones(before, tmp_path):
    new = {"model": "new", "weights": "new"}
    seen, steps = [], 0
    while True:
        out = tmp_path / f"{steps}" / "out"
        for name, text in before.items():
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text)
        finished = False
        with contextlib.suppress(RunEndedError), ending_after(steps):
            with staged_outputs(out, ["model", "weights", "page"]) as staging:
                for name, text in new.items():
                    (staging / name).write_text(text)
            finished = True
        seen.append(contents(out))
        if finished:
            break
        steps += 1
    assert steps >= 4
    assert all(each in (before, new) for each in seen)
    assert before in seen
    assert seen[-1] == new


def test_a_directory_in_use_keeps_its_place(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("old")
    monkeypatch.chdir(tmp_path / "out")
    with staged_outputs(tmp_path / "out", ["x"]) as staging:
        (staging / "x").write_text("new")
    assert Path("x").read_text() == "new"


def write_and_fail(out):
    with staged_outputs(out, ["x"]) as staging:
        (staging / "x").write_text("new")
        raise OSError("disk full")


def test_after_an_error_everything_is_as_it_was(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "x").write_text("old")
    for out in (old, tmp_path / "new" / "out"):
        with pytest.raises(OSError, match="disk full"):
            write_and_fail(out)
    assert (old / "x").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["old"]


def test_existing_outputs_are_refused_unless_forced(tmp_path):
    (tmp_path / "x").write_text("old")
    refuse_existing(tmp_path, ["y"], force=False)
    refuse_existing(tmp_path, ["x"], force=True)
    with pytest.raises(OutputExistsError, match="--force"):
        refuse_existing(tmp_path, ["y", "x"], force=False)


def test_a_file_where_the_directory_should_be_is_told(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        refuse_existing(tmp_path / "out", ["x"], force=True)


def test_a_place_below_a_file_cannot_be_written_to_and_the_error_says_so(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write to"), staging_directory(tmp_path / "file" / "out.onnx"):
        pytest.fail("there is no place to stage in")
    assert (tmp_path / "file").read_text() == "mine"


def test_parents_made_for_a_target_vanish_with_the_failure_but_not_the_ones_that_were_there(tmp_path):
    def fail(target):
        with staging_directory(target) as staging:
            (staging / "out").write_text("half")
            raise RuntimeError

    (tmp_path / "old").mkdir()
    with pytest.raises(RuntimeError):
        fail(tmp_path / "old" / "new" / "deeper" / "out")
    assert [each.name for each in tmp_path.rglob("*")] == ["old"]


def test_a_file_may_not_take_the_place_of_a_directory(tmp_path):
    with pytest.raises(OutputExistsError, match="is a directory"):
        refuse_existing_file(tmp_path, force=True)


def test_a_text_is_written_whole_and_replaced_only_by_force(tmp_path):
    path = tmp_path / "deeper" / "text"
    write_text(path, "h\u00e9", force=False)
    assert path.read_text(encoding="utf-8") == "h\u00e9"
    with pytest.raises(OutputExistsError):
        write_text(path, "other", force=False)
    assert path.read_text(encoding="utf-8") == "h\u00e9"
    write_text(path, "other", force=True)
    assert [file.name for file in path.parent.iterdir()] == ["text"]
    assert path.read_text() == "other"
