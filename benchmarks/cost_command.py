"""The command line of ``benchmarks/cost.py``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import afm_fx
from afm_fx.io import Machine, available_cores, render_table, this_machine
from benchmarks.apply_memory import ApplyMemory, measure_apart
from benchmarks.calibration_cost import CalibrationCost, calibration_cost
from benchmarks.criteo_shape import CriteoShape
from benchmarks.exit_codes import exit_codes
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

CALIBRATION_COLUMNS = ("batch", "threads", "rows", "inference s", "calibration s", "ratio", "over repeats", "repeats")
MEMORY_COLUMNS = (
    "table", "code width", "model MB", "result MB", "peak / model, process without model = 0", "apply alone / model",
    "seconds",
)  # fmt: skip

app = typer.Typer(add_completion=False)


@app.command()
def cost(
    *,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Rows per batch; may be given several times. [default: 1024 4096]")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads; may be given several times. [default: 1 and all cores]")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of one repetition of calibration.")] = 65_536,
    repeats: Annotated[int, typer.Option(help="Interleaved repetitions of calibration and inference.")] = 11,
    model_rows: Annotated[int, typer.Option(help="Table rows of the model that is calibrated.")] = 1_000_000,
    large_table_rows: Annotated[int, typer.Option(help="Rows of the table of the memory measurement.")] = 10_000_000,
    width: Annotated[int, typer.Option(help="Width of that table.")] = 16,
    code_width: Annotated[int, typer.Option(help="Width of the codes that replace it.")] = 2,
    seed: Annotated[int, typer.Option(help="Of weights and traffic.")] = 0,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Measure what the pass itself costs: time of calibration and memory of applying a plan.

    Calibration is timed against plain inference of the same rows through the same program (a Criteo-shaped DeepFM), in
    turns. Memory is the peak of a fresh process that applies a plan to a model with one large table. Exit code 2: a
    mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "cost", force=force)
        shape = CriteoShape(total_rows=model_rows)
        program = afm_fx.capture(shape.deepfm(seed), shape.batch(4, seed))
        traffic = shape.batch(rows, seed + 1)
        cases = [(size, count) for size in batch_size or (1024, 4096) for count in threads or _thread_counts()]
        costs = [
            calibration_cost(program, traffic, batch_size=size, threads=count, repeats=repeats) for size, count in cases
        ]
        memory = measure_apart(large_table_rows, width, code_width)
    command, machine = shown_command("benchmarks/cost.py", sys.argv[1:]), this_machine()
    typer.echo(render_table("Calibration", CALIBRATION_COLUMNS, calibration_rows(costs), left=0))
    typer.echo(render_table("Memory of apply_plan", MEMORY_COLUMNS, memory_rows(memory)))
    typer.echo(machine.line())
    files.write(markdown(command, machine, costs, memory), as_json(command, machine, costs, memory))


def _thread_counts() -> list[int]:
    return sorted({1, available_cores()})


def calibration_rows(costs: list[CalibrationCost]) -> list[tuple[str, ...]]:
    """One row of text per case, in the order of ``CALIBRATION_COLUMNS``."""
    return [
        (
            f"{cost.batch_size:,}",
            str(cost.threads),
            f"{cost.rows:,}",
            f"{cost.inference_seconds:.3f}",
            f"{cost.calibration_seconds:.3f}",
            f"{cost.ratio:.2f}",
            f"{cost.ratio_range[0]:.2f} to {cost.ratio_range[1]:.2f}",
            str(cost.repeats),
        )
        for cost in costs
    ]


def memory_rows(memory: ApplyMemory) -> list[tuple[str, ...]]:
    """The measurement as one row of text, in the order of ``MEMORY_COLUMNS``."""
    return [
        (
            f"{memory.table_rows:,} x {memory.width}",
            str(memory.code_width),
            f"{memory.model_bytes / 1e6:,.0f}",
            f"{memory.result_bytes / 1e6:,.0f}",
            f"{memory.whole:.2f}",
            f"{memory.apply_alone:.2f}",
            f"{memory.seconds:.1f}",
        )
    ]


def markdown(command: str, machine: Machine, costs: list[CalibrationCost], memory: ApplyMemory) -> str:
    """The page that is committed."""
    parts = [
        "# What the pass itself costs",
        f"`{command}`",
        machine.line(),
        "## Calibration against plain inference of the same rows",
        markdown_table(CALIBRATION_COLUMNS, calibration_rows(costs), left=0),
        "## Memory of `apply_plan`",
        markdown_table(MEMORY_COLUMNS, memory_rows(memory)),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(command: str, machine: Machine, costs: list[CalibrationCost], memory: ApplyMemory) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "machine": asdict(machine),
        "calibration": [asdict(cost) for cost in costs],
        "memory": {**asdict(memory), "whole_ratio": memory.whole, "apply_alone_ratio": memory.apply_alone},
    }
