"""Going on from checkpoints: no row lost, none counted twice, and nothing taken for what it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.calibration_checkpoint import (
    CalibrationCheckpoints,
    CheckpointFile,
    all_covered,
    chosen_files,
    remove_checkpoints,
)
from afm_fx.data_units import Unit
from afm_fx.errors import CalibrationError, FileFormatError, UserError

UNIT_ROWS, SIZE = (13, 4, 0, 22, 9), 4
ROWS = sum(UNIT_ROWS)
OPTIONS = {"sensitivity_rows": 16, "sampled_rows": 9}


class StopError(Exception):
    """Stands for a process that dies."""


@dataclass
class Rows:
    """Rows in memory, in units; reading fails after some batches."""

    rows: Tensor
    fails_after: int = 1 << 30
    identity: str = "rows"
    read: list[int] = field(default_factory=list)
    batch_size: int = SIZE

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(Unit(f"unit {number}", rows) for number, rows in enumerate(UNIT_ROWS))

    def unit_batches(self, unit: int, start: int, stop: int) -> Iterator[Tensor]:
        first = sum(UNIT_ROWS[:unit])
        for begin in range(start, stop, SIZE):
            if len(self.read) == self.fails_after:
                raise StopError
            batch = self.rows[first + begin : first + min(begin + SIZE, stop)]
            self.read.extend([unit])
            yield batch


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    torch.manual_seed(0)
    return afm_fx.capture(nn.Sequential(nn.Linear(4, 70), nn.ReLU(), nn.Linear(70, 3)), torch.zeros(2, 4))


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(4)) + 5


@pytest.fixture(scope="module")
def undisturbed(program, rows, tmp_path_factory) -> afm_fx.Statistics:
    folder = tmp_path_factory.mktemp("undisturbed")
    return afm_fx.calibrate(program, Rows(rows), checkpoint_dir=folder, checkpoint_batches=2, **OPTIONS)


def assert_same(found: afm_fx.Statistics, expected: afm_fx.Statistics) -> None:
    assert (found.rows, found.batches) == (expected.rows, expected.batches) == (ROWS, 14)
    for name, moments in expected.moments.items():
        assert found.moments[name].count == moments.count
        torch.testing.assert_close(found.moments[name].scatter, moments.scatter, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            found.sensitivities[name].consumer, expected.sensitivities[name].consumer, rtol=1e-10, atol=1e-10
        )
    assert torch.equal(found.sample.keys, expected.sample.keys)


@pytest.mark.parametrize("stops", [[], [0], [5], [11, 1], [4, 3, 2]])
def test_however_often_it_is_interrupted_every_row_counts_once(program, rows, undisturbed, tmp_path, stops):
    for stop in stops:
        source = Rows(rows, fails_after=stop)
        with pytest.raises(StopError):
            afm_fx.calibrate(program, source, checkpoint_dir=tmp_path, checkpoint_batches=2, **OPTIONS)
    source = Rows(rows)
    found = afm_fx.calibrate(program, source, checkpoint_dir=tmp_path, checkpoint_batches=2, **OPTIONS)
    assert_same(found, undisturbed)
    again = Rows(rows)
    repeated = afm_fx.calibrate(program, again, checkpoint_dir=tmp_path, checkpoint_batches=2, **OPTIONS)
    assert_same(repeated, undisturbed)
    assert again.read == []  # all of it is on disk


def test_what_was_saved_is_not_read_again(program, rows, tmp_path):
    with pytest.raises(StopError):
        afm_fx.calibrate(program, Rows(rows, fails_after=8), checkpoint_dir=tmp_path, checkpoint_batches=2, **OPTIONS)
    source = Rows(rows)
    afm_fx.calibrate(program, source, checkpoint_dir=tmp_path, checkpoint_batches=2, **OPTIONS)
    assert 14 - 8 <= len(source.read) <= 14 - 4  # at most two intervals of two batches are lost


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampled_rows": 8}, "sampled_rows"),
        ({"max_rows": 7}, "max_rows"),
        ({"batch_size": 2}, "the batch size"),
        ({"identity": "others"}, "the data"),
        ({"program": nn.Linear(4, 70)}, "the model"),
    ],
)
def test_checkpoints_of_another_calibration_are_refused(program, rows, tmp_path, change, says):
    afm_fx.calibrate(program, Rows(rows), checkpoint_dir=tmp_path, **OPTIONS)
    of_source = {name: change[name] for name in ("batch_size", "identity") if name in change}
    of_call = {name: change[name] for name in ("sampled_rows", "max_rows") if name in change}
    if "program" in change:
        program = afm_fx.capture(change["program"], torch.zeros(2, 4))
    with pytest.raises(CalibrationError, match=f"another calibration, which differs in {says};"):
        afm_fx.calibrate(program, Rows(rows, **of_source), checkpoint_dir=tmp_path, **{**OPTIONS, **of_call})


def test_a_retrained_model_is_another_model(program, rows, tmp_path):
    afm_fx.calibrate(program, Rows(rows), checkpoint_dir=tmp_path)
    other = program.to(torch.float32)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    with pytest.raises(CalibrationError, match=r"differs in the model"):
        afm_fx.calibrate(other, Rows(rows), checkpoint_dir=tmp_path)


def test_batches_whose_rows_have_no_place_are_refused(program, rows, tmp_path):
    with pytest.raises(CalibrationError, match="checkpoint_dir needs data whose rows have a place"):
        afm_fx.calibrate(program, [rows], checkpoint_dir=tmp_path)
    with pytest.raises(CalibrationError, match="checkpoint_batches"):
        afm_fx.calibrate(program, Rows(rows), checkpoint_dir=tmp_path, checkpoint_batches=0)


def test_a_unit_with_other_rows_than_it_says_is_an_error(program, rows):
    class Short(Rows):
        def unit_batches(self, unit, start, stop):
            yield from super().unit_batches(unit, start, stop - 1 if unit == 3 else stop)

    with pytest.raises(CalibrationError, match="unit 'unit 3' should have rows"):
        afm_fx.calibrate(program, Short(rows))


def test_a_bad_batch_is_named_by_its_unit(program, rows):
    torn = rows.clone()
    torn[13 + 4 + 5] = float("nan")
    with pytest.raises(CalibrationError, match="batch 1 of unit 3: input 'input_1' has the value nan"):
        afm_fx.calibrate(program, Rows(torn))


def test_a_damaged_file_is_named(program, rows, tmp_path):
    afm_fx.calibrate(program, Rows(rows), checkpoint_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileFormatError, match=path.name):
        afm_fx.calibrate(program, Rows(rows), checkpoint_dir=tmp_path)


def test_removing_leaves_what_is_not_of_calibration(program, rows, tmp_path):
    folder = tmp_path / "kept"
    afm_fx.calibrate(program, Rows(rows), checkpoint_dir=folder)
    (folder / ".calibration-0.safetensors.x").mkdir()  # of a process that was killed while it wrote
    (folder / "notes.txt").touch()
    remove_checkpoints(folder)
    assert [each.name for each in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    remove_checkpoints(folder)
    assert not folder.exists()


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be a directory of checkpoints"):
        CalibrationCheckpoints(tmp_path / "file", {})


def test_of_files_that_overlap_the_one_with_more_rows_counts_and_each_is_read_once():
    small = CheckpointFile("a", {0: [(0, 4)]})
    large = CheckpointFile("b", {0: [(0, 8)], 1: [(0, 4)]})
    apart = CheckpointFile("c", {0: [(8, 12)]})
    chosen = chosen_files([[small], [apart, large], [apart]])
    assert {name: rank for name, (rank, _) in chosen.items()} == {"b": 1, "c": 1}
    assert {unit: sorted(each) for unit, each in all_covered([large, apart]).items()} == {
        0: [(0, 8), (8, 12)],
        1: [(0, 4)],
    }
