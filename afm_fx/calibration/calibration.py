"""Calibration: what every site's features look like on real rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import torch

from afm_fx.calibration.all_reduce import all_reduced
from afm_fx.calibration.statistics import (
    Share,
    Statistics as Statistics,  # noqa: PLC0414 - it is known under this name too
)
from afm_fx.calibration.statistics_collector import StatisticsCollector
from afm_fx.data import FileBatches, checked_batches
from afm_fx.errors import CalibrationError, UserError
from afm_fx.io import Group, agreed, check_group, rank_and_size, track
from afm_fx.program import Batch, Inputs, Program, require_program

SAMPLED_NUMBERS = 65_536
"""Numbers of a tensor that a digest looks at, evenly spread: to read a large table whole takes as long as a pass."""


def calibrate(
    program: Program,
    batches: Iterable[Inputs],
    *,
    max_rows: int | None = None,
    sensitivity_rows: int = 0,
    share: tuple[int, int] | None = None,
    group: Group | None = None,
) -> Statistics:
    """Runs the program over batches and collects the moments of every site's features.

    Statistics of disjoint rows add up (``a + b``), so any number of calls may share the work. Data files
    (:class:`afm_fx.data.file_batches.FileBatches`) are shared by ``share``: every batch is in one share, and the shares
    add up to what one call finds. Moments differ from it by rounding, counts and random draws do not differ.

    With a process group all its processes call this, with the same program and options, and all get the sum. They take
    a share each of data files, of which every process gives the whole; any other iterable is a process's own part.

    Args:
        program: the captured model.
        batches: what the model takes, batch by batch.
        max_rows: stop after so many rows: the first ones of data files, whatever the share. Of other iterables, each
            process of a group takes its N-th part of the number at most.
        sensitivity_rows: take gradients on about so many rows in all, whole batches of them
            (:mod:`afm_fx.calibration.sensitivity`); they cost about three times as much as inference and need no
            labels. 0 for none. Of data files the batches are spread evenly over all rows, else they are the first ones.
        share: ``(i, n)``: only share ``i`` of ``n``, ``i`` from 0 to ``n - 1``, of data files. In a group, the
            processes share that.
        group: the processes, for example ``torch.distributed.group.WORLD``; None for this one alone.

    Raises:
        CalibrationError: no batches, or NaN or infinite features (which batch, which node).
        BatchError: a batch does not fit, or holds an id outside its table (which batch, which input, which id).
        OtherProcessError: another process of the group failed (which, and why) or died.
        UserError: there is no such share, or the batches cannot be shared.
    """
    require_program(program, "afm_fx.calibrate")
    check_group(group)
    rank, world = rank_and_size(group)
    failure, own = None, None
    try:
        _check(batches, max_rows, share)
        collector = StatisticsCollector(program, gradients=sensitivity_rows > 0)
        shares: list[Share] = []
        if isinstance(batches, FileBatches):
            (number, of), whole = share or (0, 1), batches.head(max_rows)
            shares = [Share(number * world + rank, of * world, whole.identity())]
            _add_share(collector, program, whole, shares[0], sensitivity_rows)
        elif max_rows is None or _part(max_rows, rank, world):
            rows, graded = (each and _part(each, rank, world) for each in (max_rows, sensitivity_rows))
            _add_own_part(collector, checked_batches(program, batches, rows), graded or 0, rank << 32)
        origin = {"the model": program_digest(program), "sensitivity_rows": str(sensitivity_rows)}
        kept = frozenset(each for each in shares if each.of > 1)
        own = replace(collector.result(), origin=origin, shares=kept)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other processes wait to be told
        failure = error
    agreed(group, failure)
    assert own is not None  # noqa: S101 - else there was a failure, and that was raised
    found = own if group is None else all_reduced(own, group)
    if found.rows == 0 and share is None:
        raise CalibrationError("there are no calibration batches")
    return found


def _check(batches: Iterable[Inputs], max_rows: int | None, share: tuple[int, int] | None) -> None:
    """Checks what was asked for, before anything is run."""
    if max_rows is not None and max_rows < 1:
        raise CalibrationError(f"max_rows must be at least 1, got {max_rows}")
    if share is None:
        return
    if not isinstance(batches, FileBatches):
        raise UserError(
            f"share needs a FileBatches, whose rows have a place, not a {type(batches).__name__}: give the share's own "
            "batches, and add the statistics"
        )
    number, of = share
    if not 0 <= number < of:
        raise UserError(f"there is no share {number}/{of}: they are numbered from 0, so the last one is n - 1 of n")


def _add_share(
    collector: StatisticsCollector, program: Program, batches: FileBatches, share: Share, sensitivity_rows: int
) -> None:
    """Adds a share of a data set. Random draws follow from a batch's number in it, whoever reads it."""
    own, every = batches.share(share.number, share.of), len(batches)
    graded = min(-(-sensitivity_rows // batches.batch_size), every)
    for batch in track(checked_batches(program, own, first=own.first), "calibrating", len(own)):
        evenly = batch.number * graded % every < graded  # holds for `graded` of all numbers, evenly spread
        collector.add(batch, gradients=evenly, seed=batch.number)


def _add_own_part(collector: StatisticsCollector, batches: Iterable[Batch], graded: int, seed: int) -> None:
    """Adds what a process sees of its own iterable, with gradients on its first rows."""
    seen = 0
    for batch in track(batches, "calibrating"):
        collector.add(batch, gradients=seen < graded, seed=seed + batch.number)
        seen += batch.rows


def _part(rows: int, rank: int, world: int) -> int:
    """One process's part of a number of rows; the parts of all add up to it."""
    return rows // world + (rank < rows % world)


def program_digest(program: Program) -> str:
    """A digest of the graph, and of names, shapes and numbers of what it holds.

    Of tensors with more than 65,536 numbers so many are looked at: a retrained checkpoint is told, a single changed row
    of a large table may not be.
    """
    digest = hashlib.sha256(program.graph_module.code.encode())
    digest.update(f"{program.dtype} {program.input_names}".encode())
    for name, tensor in sorted(program.graph_module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLED_NUMBERS)].contiguous().cpu()
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
