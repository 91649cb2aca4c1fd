"""The command line of ``benchmarks/scale.py``."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from afm_fx.commands import numbers_of
from afm_fx.io import Machine, render_table, this_machine
from benchmarks.exit_codes import exit_codes
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command
from benchmarks.scale_calibration import BATCH_SIZE, SHAPE, CalibrationRun, measure_apart, write_data

RATE_COLUMNS = ("processes", "seconds", "rows/s", "MB/s of Parquet", "times 1 process")
MEMORY_COLUMNS = ("rows read", "tensors alive MB", "resident above warm-up MB")
SITE_COLUMNS = ("site", "bytes sent by a process")

app = typer.Typer(add_completion=False)


@app.command()
def scale(
    *,
    rows: Annotated[int, typer.Option(min=8, help="Rows of the data.")] = 1_000_000,
    processes: Annotated[str, typer.Option(help="Numbers of processes, comma-separated, beginning with 1.")] = "1,2",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of every number of processes.")] = 3,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the data go for a while.", show_default="a temporary one")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Measure calibration by processes of torchrun: rows per second, memory against rows, and bytes sent.

    Every run is made by fresh processes, the numbers of processes in turns. What is measured of tables larger than
    memory is in benchmarks/scale_apply.py. Exit code 2: a mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "scale", force=force)
        counts = numbers_of(processes, "numbers of processes", int)
        with tempfile.TemporaryDirectory(dir=work_dir) as folder:
            data = Path(folder) / "data"
            size = write_data(data, rows)
            turns = [[measure_apart(data, rows, count) for count in counts] for _ in range(repeats)]
    command, machine = shown_command("benchmarks/scale.py", sys.argv[1:]), this_machine()
    typer.echo(render_table("Calibration by processes", RATE_COLUMNS, rate_rows(turns, size)))
    typer.echo(render_table("Memory against rows", MEMORY_COLUMNS, memory_rows(turns[0][0])))
    typer.echo(f"{slope(turns[0][0]):.1f} bytes more for every row")
    typer.echo(render_table("Bytes sent", SITE_COLUMNS, site_rows(turns[0][-1])))
    typer.echo(machine.line())
    files.write(markdown(command, machine, turns, size), as_json(command, machine, turns, size))


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


def markdown(
    command: str,
    machine: Machine,
    turns: Sequence[Sequence[CalibrationRun]],
    size: int,
) -> str:
    """The page that is committed."""
    run = turns[0][-1]
    parts = [
        "# Calibration by many processes",
        f"`{command}`",
        machine.line(),
        f"A DeepFM with {SHAPE.sparse_fields} tables of {SHAPE.total_rows:,} rows in all x {SHAPE.width}, "
        f"{SHAPE.dense_fields} dense features and an MLP of {', '.join(map(str, SHAPE.hidden))}; {run.rows:,} rows in "
        f"4 folders of Parquet, {size / 1e6:.0f} MB ({size / run.rows:.0f} bytes a row), batches of {BATCH_SIZE:,}, "
        "one thread a process, gradients on 32,768 rows. Every run is made by fresh processes under torchrun and timed "
        f"from their common start to the merged result; the numbers of processes took {len(turns)} turns.",
        markdown_table(RATE_COLUMNS, rate_rows(turns, size)),
        "Memory of one process as it reads: of all tensors that are alive (the model's tables are among them), and "
        "resident above what it held after a warm-up on 8 batches, which is what the allocator kept too; its peak was "
        f"{turns[0][0].peak_above / 1e6:.0f} MB above. The line through the second half of all batches rises by "
        f"{slope(turns[0][0]):.1f} bytes a row; a row of the data has {size / run.rows:.0f}.",
        markdown_table(MEMORY_COLUMNS, memory_rows(turns[0][0]), left=0),
        "What each process gives to `all_reduce`, counted as it passes; it does not depend on the rows, and adds up to "
        "what the shapes of the statistics say.",
        markdown_table(SITE_COLUMNS, site_rows(run)),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(
    command: str,
    machine: Machine,
    turns: Sequence[Sequence[CalibrationRun]],
    size: int,
) -> Mapping[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "machine": asdict(machine),
        "data_bytes": size,
        "turns": [[asdict(run) for run in turn] for turn in turns],
        "memory_bytes_per_row": slope(turns[0][0]),
    }
