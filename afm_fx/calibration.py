"""Calibration: what every site's features look like on real rows."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from afm_fx.batches import checked_batches
from afm_fx.data_units import UnitBatches
from afm_fx.errors import CalibrationError
from afm_fx.inputs import Inputs
from afm_fx.process_groups import Group, agreed, check_alike, check_group, rank_and_size
from afm_fx.program import Program
from afm_fx.progress import track
from afm_fx.shares import share_of
from afm_fx.statistics import Statistics as Statistics  # noqa: PLC0414 - it is known under this name too
from afm_fx.statistics_collector import StatisticsCollector
from afm_fx.statistics_merge import layout_of, merged_over
from afm_fx.unit_calibration import CHECKPOINT_BATCHES, UnitCalibration


def calibrate(
    program: Program,
    batches: Iterable[Inputs] | UnitBatches,
    *,
    max_rows: int | None = None,
    product_dtype: torch.dtype | None = None,
    sensitivity_rows: int = 0,
    sampled_rows: int = 0,
    group: Group | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_batches: int = CHECKPOINT_BATCHES,
) -> Statistics:
    """Runs the program over batches and collects the moments of every site's features.

    With a process group, all its processes call this, with the same program and options, and all get the statistics of
    the rows of all. Data that can be read in units (:class:`afm_fx.file_batches.FileBatches`) are shared out by them;
    every process gives the whole of them. Of any other iterable every process gives its own part.

    Args:
        program: the captured model.
        batches: what the model takes, batch by batch.
        max_rows: stop after so many rows. Over processes: the first so many rows of data in units; of other iterables
            each process takes its N-th part of the number at most.
        product_dtype: dtype of the products within a batch for sites wider than 64 features; None for the program's
            own. Means, and sums over batches, are float64 always. With float32 a covariance carries a relative error
            of about 1e-7, no more than the float32 features themselves.
        sensitivity_rows: take gradients on so many rows, whole batches of them (:mod:`afm_fx.sensitivity`); they cost
            about three times as much as inference and need no labels. 0 for none. Of data in units the batches are
            spread evenly over all rows, else they are the first ones; over processes they are so many in all.
        sampled_rows: keep so many of the rows (in all), drawn at random, in the statistics and their file, for
            :func:`afm_fx.refit_plan`; some thousands are enough. These are real rows: keep the file as you keep your
            logs. 0 for none.
        group: the processes, for example ``torch.distributed.group.WORLD``; None for this one alone.
        checkpoint_dir: where what was seen is written now and then. The same call, by any number of processes, goes on
            from there: no row is lost and none is counted twice. It needs data in units. Files stay, and what they hold
            counts whenever the call is repeated, until :func:`afm_fx.calibration_checkpoint.remove_checkpoints` is
            called; they are as large as the statistics, and hold the sampled rows.
        checkpoint_batches: write after so many batches of a process.

    Raises:
        CalibrationError: no batches, NaN or infinite features (which batch, which node), or a checkpoint of another
            calibration.
        BatchError: a batch does not fit, or holds an id outside its table (which batch, which input, which id).
        OtherProcessError: another process of the group failed (which, and why) or died.
    """
    check_group(group)
    rank, _ = rank_and_size(group)
    if checkpoint_dir is not None and not isinstance(batches, UnitBatches):
        raise CalibrationError(
            "checkpoint_dir needs data whose rows have a place: FileBatches, or another afm_fx.data_units.UnitBatches; "
            f"got a {type(batches).__name__}"
        )
    if checkpoint_batches < 1:
        raise CalibrationError(f"checkpoint_batches must be at least 1, got {checkpoint_batches}")
    if max_rows is not None and max_rows < 1:
        raise CalibrationError(f"max_rows must be at least 1, got {max_rows}")
    collector = StatisticsCollector(
        program, product_dtype=product_dtype, gradients=sensitivity_rows > 0, sampled_rows=sampled_rows, seed=rank
    )
    if isinstance(batches, UnitBatches):
        options = {
            "max_rows": max_rows,
            "sensitivity_rows": sensitivity_rows,
            "sampled_rows": sampled_rows,
            "product_dtype": str(product_dtype),
        }
        units = UnitCalibration(program, batches, collector, group, options)
        own = units.run(checkpoint_dir, checkpoint_batches)
    else:
        own = _own_part(program, batches, collector, group, max_rows=max_rows, sensitivity_rows=sensitivity_rows)
    found = own if group is None else merged_over(group, own)
    if found.rows == 0:
        raise CalibrationError("there are no calibration batches")
    return collector.finished(found)


def _own_part(
    program: Program,
    batches: Iterable[Inputs],
    collector: StatisticsCollector,
    group: Group | None,
    *,
    max_rows: int | None,
    sensitivity_rows: int,
) -> Statistics:
    """What this process sees of its own iterable, once all others have come so far."""
    rank, world = rank_and_size(group)
    rows = None if max_rows is None else share_of(max_rows, rank, world)
    gradients = share_of(sensitivity_rows, rank, world)
    failure, own = None, None
    try:
        seen = 0
        if rows != 0:
            for batch in track(checked_batches(program, batches, rows), "calibrating", _length(batches)):
                collector.add(batch, gradients=seen < gradients)
                seen += batch.rows
        own = collector.collected()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other processes wait to be told
        failure = error
    check_alike(agreed(group, failure, None if own is None else layout_of(own)))
    assert own is not None  # noqa: S101 - else there was a failure, and that was raised
    return own


def _length(batches: Iterable[Inputs]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None
