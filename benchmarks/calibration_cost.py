"""What calibration costs beside plain inference of the same rows through the same program."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import afm_fx
from afm_fx.program import Program


@dataclass(frozen=True)
class CalibrationCost:
    """Calibration against inference at one batch size and thread count.

    Attributes:
        batch_size: rows per batch.
        threads: threads of torch.
        rows: rows of one repetition.
        repeats: interleaved repetitions of both.
        inference_seconds: median time of running the rows.
        calibration_seconds: median time of calibrating on them.
        ratio: median over repetitions of calibration over inference.
        ratio_range: smallest and largest of that ratio.
    """

    batch_size: int
    threads: int
    rows: int
    repeats: int
    inference_seconds: float
    calibration_seconds: float
    ratio: float
    ratio_range: tuple[float, float]


def calibration_cost(program: Program, rows: Tensor, *, batch_size: int, threads: int, repeats: int) -> CalibrationCost:
    """Times both in turns, in an order that alternates, after one untimed turn of each.

    Args:
        program: what is run and calibrated.
        rows: [rows, columns], what the program takes.
        batch_size: rows per batch.
        threads: threads of torch, restored afterwards.
        repeats: timed turns of each.
    """
    batches = rows.split(batch_size)

    def infer() -> None:
        for batch in batches:
            program.run(batch)

    def calibrate() -> None:
        afm_fx.calibrate(program, batches)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        spent = interleave((infer, calibrate), repeats)
    finally:
        torch.set_num_threads(before)
    ratios = spent[1] / spent[0]
    return CalibrationCost(
        batch_size=batch_size,
        threads=threads,
        rows=len(rows),
        repeats=repeats,
        inference_seconds=float(np.median(spent[0])),
        calibration_seconds=float(np.median(spent[1])),
        ratio=float(np.median(ratios)),
        ratio_range=(float(ratios.min()), float(ratios.max())),
    )


def interleave(actions: Sequence[Callable[[], None]], repeats: int) -> np.ndarray:
    """Seconds of each action and repetition, [actions, repeats], taken in turns whose order is reversed every time."""
    for action in actions:
        action()
    spent = np.zeros((len(actions), repeats))
    for repeat in range(repeats):
        order = range(len(actions)) if repeat % 2 == 0 else reversed(range(len(actions)))
        for position in order:
            start = time.perf_counter()
            actions[position]()
            spent[position, repeat] = time.perf_counter() - start
    return spent
