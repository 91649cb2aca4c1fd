"""Calibration on data in units, by one process or many, from the beginning or from where others stopped.

What is found does not depend on how many processes share the units: random numbers follow from a batch's place in the
data, and rows that are summed together (small batches are) are always rows of one unit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from afm_fx.batches import Batch, checked_batch
from afm_fx.calibration_checkpoint import CalibrationCheckpoints, CheckpointFile, all_covered, chosen_files
from afm_fx.data_units import UnitBatches
from afm_fx.errors import CalibrationError
from afm_fx.fingerprints import data_fingerprint, program_fingerprint
from afm_fx.prefetch import prefetched
from afm_fx.process_groups import Group, agreed, check_alike, rank_and_size
from afm_fx.program import Program
from afm_fx.progress import track
from afm_fx.shares import Piece, gradient_batches, joined, pieces_of, seed_of_batch, shared_out, without
from afm_fx.statistics import Statistics
from afm_fx.statistics_collector import StatisticsCollector
from afm_fx.statistics_merge import merged

CHECKPOINT_BATCHES = 1_000
"""Batches of a process from one checkpoint to the next."""


class UnitCalibration:
    """One process's part of a calibration.

    Args:
        program: the captured model.
        source: the data, whole in every process.
        collector: collects this process's statistics.
        group: all processes, None for this one alone.
        options: what else decides on the result, by name; JSON values.
    """

    def __init__(
        self,
        program: Program,
        source: UnitBatches,
        collector: StatisticsCollector,
        group: Group | None,
        options: Mapping[str, Any],
    ) -> None:
        self._program, self._source, self._collector, self._group = program, source, collector, group
        self._options = options
        self._rank, self._world = rank_and_size(group)
        self._pieces: list[Piece] = []
        self._gradients: frozenset[tuple[int, int]] = frozenset()
        self._earlier: list[Statistics] = []

    def run(self, checkpoint_dir: str | os.PathLike[str] | None, checkpoint_batches: int) -> Statistics:
        """This process's statistics, ready to be merged with those of the others.

        Raises:
            UserError: something is wrong with the data, the model or the checkpoints.
            OtherProcessError: another process failed.
        """
        failure: Exception | None = None
        checkpoints, identity, listing = None, {}, []
        try:
            identity = self._identity()
            self._pieces = pieces_of(self._source.units, self._options["max_rows"])
            self._gradients = gradient_batches(self._pieces, self._source.batch_size, self._options["sensitivity_rows"])
            if checkpoint_dir is not None:
                checkpoints = CalibrationCheckpoints(checkpoint_dir, identity)
                listing = checkpoints.found()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other processes wait to be told
            failure = error
        told = agreed(self._group, failure, (identity, listing))
        check_alike([identity for identity, _ in told])
        try:
            share = self._share([listing for _, listing in told], checkpoints)
            self._collect(share, checkpoints, checkpoint_batches)
            own = merged([*self._earlier, self._collector.collected()])
        except Exception as error:  # noqa: BLE001 - as above
            failure, own = error, None
        agreed(self._group, failure)
        assert own is not None  # noqa: S101 - else there was a failure, and that was raised
        return own

    def _identity(self) -> dict[str, Any]:
        return {
            "the model": program_fingerprint(self._program),
            "the data": data_fingerprint(self._source),
            "the batch size": self._source.batch_size,
            **self._options,
        }

    def _share(
        self, listings: Sequence[Sequence[CheckpointFile]], checkpoints: CalibrationCheckpoints | None
    ) -> list[Piece]:
        """What this process reads; takes up its part of what earlier attempts left."""
        chosen = chosen_files(listings)
        for rank, file in chosen.values():
            if rank == self._rank and checkpoints is not None:
                self._earlier.append(checkpoints.load(file))
        left = without(self._pieces, all_covered(file for _, file in chosen.values()))
        return shared_out(left, self._world)[self._rank]

    def _collect(
        self, share: Sequence[Piece], checkpoints: CalibrationCheckpoints | None, checkpoint_batches: int
    ) -> None:
        """Goes through a share; writes what was seen after so many batches and at the end."""
        covered: list[Piece] = []
        since = 0
        total = sum(-(-piece.rows // self._source.batch_size) for piece in share)
        batches = prefetched(self._batches(share))
        first = None  # of the rows that are not in ``covered`` yet
        for piece, start, batch in track(batches, "calibrating", total) if self._rank == 0 else batches:
            first = start if first is None else first
            self._collector.add(
                batch, gradients=(piece.unit, start) in self._gradients, seed=seed_of_batch(piece.unit, start)
            )
            since, stop = since + 1, start + batch.rows
            # Where rows that belong together are summed is fixed by their place as well.
            write = checkpoints is not None and (batch.number + 1) % checkpoint_batches == 0
            if stop == piece.stop or write:
                self._collector.flush()
                covered, first = joined(covered, Piece(piece.unit, first, stop)), None
                if checkpoints is not None and since >= checkpoint_batches:
                    checkpoints.save(self._collector.collected(), covered)
                    since = 0
        if checkpoints is not None and since:
            checkpoints.save(self._collector.collected(), covered)

    def _batches(self, share: Sequence[Piece]) -> Iterator[tuple[Piece, int, Batch]]:
        """Pieces, first rows and batches, numbered within their unit.

        Raises:
            BatchError: a batch does not fit.
            CalibrationError: a unit does not hold the rows that it should.
        """
        units, size = self._source.units, self._source.batch_size
        for piece in share:
            name, start = units[piece.unit].name, piece.start
            for inputs in self._source.unit_batches(piece.unit, piece.start, piece.stop):
                batch = checked_batch(self._program, inputs, start // size, name)
                if batch.rows != min(size, piece.stop - start):
                    break
                yield piece, start, batch
                start += batch.rows
            if start != piece.stop:
                raise CalibrationError(
                    f"unit '{name}' should have rows {start} to {piece.stop} in batches of {size}, and does not"
                )
