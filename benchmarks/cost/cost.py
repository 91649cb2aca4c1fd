"""What the pass itself costs: time of calibration, and memory of applying a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

import afm_fx
from afm_fx.io import available_cores
from benchmarks.common import options
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.fresh_process import run_apart
from benchmarks.common.large_table import LargeTableModel, random_ids
from benchmarks.common.resident_memory import peak_bytes, reset_peak, resident_bytes
from benchmarks.common.results import RESULTS, Part, Table, result_files

BATCHES, THREADS = [1024, 4096], sorted({1, available_cores()})
CALIBRATION_COLUMNS = ("batch", "threads", "rows", "inference s", "calibration s", "ratio", "over repeats", "repeats")
MEMORY_COLUMNS = (
    "table", "code width", "model MB", "result MB", "peak / model, process without model = 0", "apply alone / model",
    "seconds",
)  # fmt: skip
WIDTH, CODE_WIDTH = 16, 2
"""Width of the large table, and of the codes that replace it."""


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


@dataclass(frozen=True)
class ApplyMemory:
    """Memory around one ``apply_plan``, in bytes.

    Attributes:
        table_rows: rows of the model's table.
        model_bytes: parameters and buffers of the model.
        result_bytes: those of the compressed program.
        before_model: resident after imports and a first run on a tiny model, before the model was made.
        before_apply: resident just before ``apply_plan``, the model included.
        peak: largest resident during ``apply_plan``.
        seconds: time of ``apply_plan``.
    """

    table_rows: int
    model_bytes: int
    result_bytes: int
    before_model: int
    before_apply: int
    peak: int
    seconds: float

    @property
    def whole(self) -> float:
        """Peak above the process without a model, in model sizes: the model itself is 1 of it."""
        return (self.peak - self.before_model) / self.model_bytes

    @property
    def apply_alone(self) -> float:
        """Peak above the process with the model loaded, in model sizes."""
        return (self.peak - self.before_apply) / self.model_bytes


def cost(
    *,
    batch_size: options.BatchSizes = BATCHES,
    threads: Annotated[list[int], typer.Option(help="Threads; may be given several times.")] = THREADS,
    rows: Annotated[int, typer.Option(help="Rows of one repetition of calibration.")] = 65_536,
    repeats: Annotated[int, typer.Option(help="Interleaved repetitions of calibration and inference.")] = 11,
    model_rows: Annotated[int, typer.Option(help="Table rows of the model that is calibrated.")] = 1_000_000,
    large_table_rows: Annotated[int, typer.Option(help="Rows of the table of the memory measurement.")] = 10_000_000,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Measure what the pass itself costs: time of calibration and memory of applying a plan.

    Calibration is timed against plain inference of the same rows through the same program (a Criteo-shaped DeepFM), in
    turns. Memory is the peak of a fresh process that applies a plan to a model with one large table.
    """
    files = result_files(output_dir, "cost", force=force)
    shape = CriteoShape(total_rows=model_rows)
    program = afm_fx.capture(shape.deepfm(0), shape.batch(4, 0))
    traffic = shape.batch(rows, 1)
    cases = [(size, count) for size in batch_size for count in threads]
    costs = [
        calibration_cost(program, traffic, batch_size=size, threads=count, repeats=repeats) for size, count in cases
    ]
    memory = run_apart(apply_memory, large_table_rows)
    parts: list[Part] = [
        "## Calibration against plain inference of the same rows",
        Table(CALIBRATION_COLUMNS, calibration_rows(costs), left=0),
        "## Memory of `apply_plan`",
        Table(MEMORY_COLUMNS, memory_rows(memory)),
    ]
    files.write("What the pass itself costs", parts, {"calibration": costs, "memory": memory})


def calibration_cost(
    program: afm_fx.Program, rows: Tensor, *, batch_size: int, threads: int, repeats: int
) -> CalibrationCost:
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


def apply_memory(rows: int) -> ApplyMemory:
    """Measures in this process, which should have done nothing else before."""
    # A model without weight to speak of first: it loads the parts of torch that are loaded on first use.
    afm_fx.apply_plan(*_planned(100))
    before_model = resident_bytes()
    program, plan = _planned(rows)
    before_apply = resident_bytes()
    reset_peak()
    start = time.perf_counter()
    result = afm_fx.apply_plan(program, plan)
    seconds = time.perf_counter() - start
    return ApplyMemory(
        table_rows=rows,
        model_bytes=program.state_bytes(),
        result_bytes=result.state_bytes(),
        before_model=before_model,
        before_apply=before_apply,
        peak=peak_bytes(),
        seconds=seconds,
    )


def _planned(rows: int) -> tuple[afm_fx.Program, afm_fx.Plan]:
    """A captured model with such a table, and the plan to compress it."""
    program = afm_fx.capture(LargeTableModel(rows, WIDTH).eval(), random_ids(rows, 4, 0))
    statistics = afm_fx.calibrate(program, [random_ids(rows, 1024, seed) for seed in range(1, 5)])
    return program, afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=CODE_WIDTH, linear=None))


def calibration_rows(costs: Sequence[CalibrationCost]) -> list[tuple[str, ...]]:
    """One row of text per case, under ``CALIBRATION_COLUMNS``."""
    return [
        (
            f"{each.batch_size:,}",
            str(each.threads),
            f"{each.rows:,}",
            f"{each.inference_seconds:.3f}",
            f"{each.calibration_seconds:.3f}",
            f"{each.ratio:.2f}",
            f"{each.ratio_range[0]:.2f} to {each.ratio_range[1]:.2f}",
            str(each.repeats),
        )
        for each in costs
    ]


def memory_rows(memory: ApplyMemory) -> list[tuple[str, ...]]:
    """The measurement as one row of text, under ``MEMORY_COLUMNS``."""
    return [
        (
            f"{memory.table_rows:,} x {WIDTH}",
            str(CODE_WIDTH),
            f"{memory.model_bytes / 1e6:,.0f}",
            f"{memory.result_bytes / 1e6:,.0f}",
            f"{memory.whole:.2f}",
            f"{memory.apply_alone:.2f}",
            f"{memory.seconds:.1f}",
        )
    ]
