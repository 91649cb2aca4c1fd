"""What processes that calibrate leave on disk, so that others can go on: statistics, and the rows that they are of.

Every process of every attempt writes one file of its own, under a name that no other has, and replaces it whole.
Statistics and the rows that they cover are in one file, so that the two cannot disagree. Files of earlier attempts stay
until all is done: what is on disk is always a set of disjoint pieces of the data.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_fx.errors import CalibrationError, UserError
from afm_fx.shares import Covered, Piece
from afm_fx.statistics import Statistics
from afm_fx.tensor_files import complete, load_header, load_tensors, save_tensors

KIND = "calibration checkpoint"
VERSION = 1

PREFIX, SUFFIX = "calibration-", ".safetensors"


@dataclass(frozen=True)
class CheckpointFile:
    """One file, without its tensors.

    Attributes:
        name: of the file in its directory.
        covered: rows that its statistics are of.
    """

    name: str
    covered: Covered

    @property
    def rows(self) -> int:
        """How many rows."""
        return sum(stop - start for each in self.covered.values() for start, stop in each)


class CalibrationCheckpoints:
    """The files of one calibration in a directory.

    Args:
        directory: made where it is not there.
        identity: what two attempts must have in common, by name; JSON values.

    Raises:
        UserError: the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self._directory = Path(directory)
        self._identity = json.loads(json.dumps(dict(identity)))  # as it comes back from a file
        self._own = f"{PREFIX}{uuid.uuid4().hex}{SUFFIX}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"'{directory}' cannot be a directory of checkpoints: {error}") from error

    def found(self) -> list[CheckpointFile]:
        """The files of earlier attempts.

        Raises:
            FileFormatError: one is damaged.
            CalibrationError: one is of another calibration.
        """
        return [self._described(path) for path in _files(self._directory)]

    def load(self, file: CheckpointFile) -> Statistics:
        """The statistics of a file.

        Raises:
            FileFormatError: it is damaged.
            CalibrationError: it is not what it was when it was found.
        """
        path = self._directory / file.name
        header, tensors = load_tensors(path, KIND, VERSION)
        with complete(path, KIND):
            if _covered(header) != file.covered:
                raise CalibrationError(
                    f"'{path}' changes while it is read: another calibration is still running; wait for it, or give "
                    "each a directory of its own"
                )
            return Statistics.from_entries(header["statistics"], tensors)

    def save(self, statistics: Statistics, covered: Iterable[Piece]) -> None:
        """Writes this process's file; the one before is replaced whole."""
        entries, tensors = statistics.entries()
        pieces = [[piece.unit, piece.start, piece.stop] for piece in covered]
        header = {"identity": self._identity, "covered": pieces, "statistics": entries}
        save_tensors(self._directory / self._own, KIND, VERSION, header, tensors, force=True)

    def _described(self, path: Path) -> CheckpointFile:
        header = load_header(path, KIND, VERSION)
        with complete(path, KIND):
            found = header["identity"]
            differing = [name for name, value in self._identity.items() if found.get(name) != value]
            covered = _covered(header)
        if differing:
            raise CalibrationError(
                f"'{path}' is of another calibration, which differs in {', '.join(differing)}; name another directory, "
                "or remove this one to start over"
            )
        return CheckpointFile(path.name, covered)


def remove_checkpoints(directory: str | os.PathLike[str]) -> None:
    """Removes the files of a calibration, and the directory where nothing else is in it.

    Call it once the statistics are saved elsewhere, in one process.
    """
    folder = Path(directory)
    for path in _files(folder):
        path.unlink(missing_ok=True)
    for left in folder.glob(f".{PREFIX}*"):  # half a file of a process that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def chosen_files(listings: Iterable[Iterable[CheckpointFile]]) -> dict[str, tuple[int, CheckpointFile]]:
    """Which files count, with the number of the process that reads each: the first of those that see it.

    Files whose rows overlap cannot both count. That happens where an attempt did not see a file that appears again
    later, on a machine's own disk for example; the file of more rows counts then, and what only the other knew is seen
    again.
    """
    readers: dict[str, tuple[int, CheckpointFile]] = {}
    for rank, listing in enumerate(listings):
        for file in listing:
            readers.setdefault(file.name, (rank, file))
    chosen: dict[str, tuple[int, CheckpointFile]] = {}
    taken: dict[int, list[tuple[int, int]]] = {}
    for name, (rank, file) in sorted(readers.items(), key=lambda each: (-each[1][1].rows, each[0])):
        if not _overlaps(taken, file.covered):
            chosen[name] = (rank, file)
            _take(taken, file.covered)
    return chosen


def all_covered(files: Iterable[CheckpointFile]) -> Covered:
    """The rows of all files together."""
    taken: dict[int, list[tuple[int, int]]] = {}
    for file in files:
        _take(taken, file.covered)
    return taken


def _take(taken: dict[int, list[tuple[int, int]]], covered: Covered) -> None:
    for unit, pieces in covered.items():
        taken.setdefault(unit, []).extend(pieces)


def _overlaps(taken: Covered, covered: Covered) -> bool:
    return any(
        start < end and begin < stop
        for unit, pieces in covered.items()
        for start, stop in pieces
        for begin, end in taken.get(unit, ())
    )


def _covered(header: Mapping[str, Any]) -> dict[int, list[tuple[int, int]]]:
    taken: dict[int, list[tuple[int, int]]] = {}
    for unit, start, stop in header["covered"]:
        taken.setdefault(int(unit), []).append((int(start), int(stop)))
    return taken


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{PREFIX}*{SUFFIX}"))
