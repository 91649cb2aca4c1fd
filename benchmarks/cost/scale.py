"""Calibration by many processes: rows per second, memory against rows, and bytes sent."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.common import options
from benchmarks.common.results import RESULTS, Part, Table, result_files
from benchmarks.cost.scale_calibration import BATCH_SIZE, SHAPE, CalibrationRun, run_by_processes, write_data

PROCESSES = [1, 2]
RATE_COLUMNS = ("processes", "seconds", "rows/s", "MB/s of Parquet", "times 1 process")
MEMORY_COLUMNS = ("rows read", "tensors alive MB", "resident above warm-up MB")
SITE_COLUMNS = ("site", "bytes sent by a process")


def scale(
    *,
    rows: Annotated[int, typer.Option(min=8, help="Rows of the data.")] = 1_000_000,
    processes: Annotated[
        list[int], typer.Option(help="Number of processes; may be given several times, 1 first.")
    ] = PROCESSES,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of every number of processes.")] = 3,
    work_dir: options.WorkDir = None,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Measure calibration by processes of torchrun: rows per second, memory against rows, and bytes sent.

    Every run is made by fresh processes, the numbers of processes in turns.
    """
    files = result_files(output_dir, "scale", force=force)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        data = Path(folder) / "data"
        size = write_data(data, rows)
        turns = [[run_by_processes(data, rows, count) for count in processes] for _ in range(repeats)]
    first, run = turns[0][0], turns[0][-1]
    parts: list[Part] = [
        f"A DeepFM with {SHAPE.sparse_fields} tables of {SHAPE.total_rows:,} rows in all x {SHAPE.width}, "
        f"{SHAPE.dense_fields} dense features and an MLP of {', '.join(map(str, SHAPE.hidden))}; {rows:,} rows in "
        f"4 folders of Parquet, {size / 1e6:.0f} MB ({size / rows:.0f} bytes a row), batches of {BATCH_SIZE:,}, "
        "one thread a process, gradients on 32,768 rows. Every run is made by fresh processes under torchrun and timed "
        f"from their common start to the merged result; the numbers of processes took {len(turns)} turns.",
        Table(RATE_COLUMNS, rate_rows(turns, size)),
        "Memory of one process as it reads: of all tensors that are alive (the model's tables are among them), and "
        "resident above what it held after a warm-up on 8 batches, which is what the allocator kept too; its peak was "
        f"{first.peak_above / 1e6:.0f} MB above. The line through the second half of all batches rises by "
        f"{slope(first):.1f} bytes a row; a row of the data has {size / rows:.0f}.",
        Table(MEMORY_COLUMNS, memory_rows(first), left=0),
        "What each process gives to `all_reduce`, counted as it passes; it does not depend on the rows, and adds up to "
        "what the shapes of the statistics say.",
        Table(SITE_COLUMNS, site_rows(run)),
    ]
    content = {"data_bytes": size, "turns": turns, "memory_bytes_per_row": slope(first)}
    files.write("Calibration by many processes", parts, content)


def rate_rows(turns: Sequence[Sequence[CalibrationRun]], size: int) -> list[tuple[str, ...]]:
    """One row of text per number of processes: medians over the turns; ratios are taken within a turn."""
    found: list[tuple[str, ...]] = []
    for place, first in enumerate(turns[0]):
        seconds = statistics.median(turn[place].seconds for turn in turns)
        ratios = [turn[0].seconds / turn[place].seconds for turn in turns]
        found.append(
            (
                str(first.processes),
                f"{seconds:.1f}",
                f"{first.rows / seconds:,.0f}",
                f"{size / seconds / 1e6:.1f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            )
        )
    return found


def memory_rows(run: CalibrationRun) -> list[tuple[str, ...]]:
    """Memory at the points of a run at which tensors were counted."""
    resident = dict(run.resident)
    return [(f"{rows:,}", f"{alive / 1e6:.1f}", f"{resident[rows] / 1e6:.1f}") for rows, alive in run.alive]


def slope(run: CalibrationRun) -> float:
    """Bytes of resident memory for every further row, by least squares over the second half of a run."""
    late = run.resident[len(run.resident) // 2 :]
    return float(np.polyfit([rows for rows, _ in late], [held for _, held in late], 1)[0])


def site_rows(run: CalibrationRun) -> list[tuple[str, str]]:
    """The five sites that most is sent of, the others together, and all."""
    largest = sorted(run.site_bytes.items(), key=lambda each: -each[1])
    shown = [(name, f"{sent:,}") for name, sent in largest[:5]]
    rest = sum(sent for _, sent in largest[5:])
    return [
        *shown,
        (f"{len(largest) - len(shown)} others", f"{rest:,}"),
        ("all", f"{run.reduced_bytes:,}"),
        ("of those, counts of lookups", f"{run.table_bytes:,}"),
    ]
