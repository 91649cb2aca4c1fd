"""The command line of ``benchmarks/scale_apply.py``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from afm_fx.commands import numbers_of
from afm_fx.io import Machine, render_table, this_machine
from benchmarks.exit_codes import exit_codes
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command
from benchmarks.scale_apply_measure import ApplyMeasurement, measure_apart

ROWS = "6250000,25000000,100000000"
COLUMNS = (
    "rows", "table GB", "written GB", "copy MB/s", "apply MB/s", "apply / copy", "peak above baseline MB",
    "ONNX export MB", "ONNX file MB", "difference",
)  # fmt: skip

app = typer.Typer(add_completion=False)


@app.command()
def scale_apply(
    *,
    rows: Annotated[str, typer.Option(help="Rows of the tables, comma-separated.")] = ROWS,
    width: Annotated[int, typer.Option(help="Width of the tables.")] = 32,
    rank: Annotated[int, typer.Option(help="Width of their codes.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of copy and apply.")] = 3,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where tables go for a while.", show_default="a temporary one")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Measure memory and bandwidth of applying a plan to tables on disk, against a plain copy of their bytes.

    Every table is measured in a fresh process. Needs a little over twice the largest table's bytes of disk. Exit code
    2: a mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "scale_apply", force=force)
        found = []
        for count in numbers_of(rows, "numbers of rows", int):
            with tempfile.TemporaryDirectory(dir=work_dir) as folder:
                found.append(measure_apart(count, width, rank, repeats, Path(folder)))
            typer.echo(render_table("Applying a plan to a table on disk", COLUMNS, [row_of(found[-1])]))
    command, machine = shown_command("benchmarks/scale_apply.py", sys.argv[1:]), this_machine()
    files.write(markdown(command, machine, found), as_json(command, machine, found))


def row_of(each: ApplyMeasurement) -> tuple[str, ...]:
    """One row of text, in the order of ``COLUMNS``."""
    return (
        f"{each.rows:,}",
        f"{each.table_bytes / 1e9:.2f}",
        f"{each.written_bytes / 1e9:.2f}",
        f"{each.copy_rate / 1e6:.0f}",
        f"{each.apply_rate / 1e6:.0f}",
        f"{each.ratio:.2f}",
        f"{each.above / 1e6:.0f}",
        f"{(each.onnx_peak - each.baseline) / 1e6:.0f}",
        f"{each.onnx_bytes / 1e6:.3f}",
        f"{each.difference:.1e}",
    )


def markdown(command: str, machine: Machine, found: Sequence[ApplyMeasurement]) -> str:
    """The page that is committed."""
    width, rank = found[0].width, found[0].rank
    parts = [
        "# Applying a plan to tables on disk",
        f"`{command}`",
        machine.line(),
        f"One table of float32, {width} wide, becomes codes {rank} wide. Copy and application take turns in one "
        "process, with one thread for its arithmetic; before each the checkpoint's pages leave the cache, and each "
        "ends with its bytes on the disk. Rates are bytes of the table in a second, medians over the turns; the "
        "application's time holds the capture of the model and a SHA-256 of every block. Peaks are resident memory, "
        "pages of mapped files included, above what the process held after the same was done to a table of 10,000 "
        "rows. The ONNX file refers to the codes' file; its export is checked against torch, which maps pages of the "
        "codes. Difference: of the codes of 1,000 rows from those encoded in memory.",
        markdown_table(COLUMNS, [row_of(each) for each in found], left=0),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(command: str, machine: Machine, found: Sequence[ApplyMeasurement]) -> dict[str, Any]:
    """The same as data."""
    tables = [
        {**asdict(each), "above": each.above, "copy_rate": each.copy_rate, "apply_rate": each.apply_rate,
         "ratio": each.ratio}
        for each in found
    ]  # fmt: skip
    return {"command": command, "machine": asdict(machine), "tables": tables}
