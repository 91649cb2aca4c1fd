"""The command line of ``benchmarks/large_file.py``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from afm_fx.io import Machine, render_table, this_machine
from benchmarks.exit_codes import exit_codes
from benchmarks.large_file_memory import KINDS, ExportMemory, ServeMemory, export_apart, serve_apart
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

EXPORT_COLUMNS = ("exported", "file GB", "model / file", "peak / file", "seconds", "largest difference to torch")
SERVE_COLUMNS = (
    "served", "file GB", "peak while opening / file", "own memory / file", "mapped pages / file", "seconds to open",
)  # fmt: skip

app = typer.Typer(add_completion=False)


@app.command()
def large_file(
    *,
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = 40_000_000,
    width: Annotated[int, typer.Option(help="Width of the table.")] = 16,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the exported files go for a while.", show_default="a temporary one")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Measure memory of exporting and serving a model with one large table.

    Every case runs in a fresh process. It needs a little over twice the table's memory and as much disk. Exit code 2: a
    mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "large_file", force=force)
        exports, served = [], []
        for kind in KINDS:
            with tempfile.TemporaryDirectory(dir=work_dir) as folder:
                exports.append(export_apart(kind, rows, width, Path(folder)))
                served.append(serve_apart(kind, rows, width, Path(folder)))
    command, machine = shown_command("benchmarks/large_file.py", sys.argv[1:]), this_machine()
    typer.echo(render_table("Memory of exporting", EXPORT_COLUMNS, export_rows(exports)))
    typer.echo(render_table("Memory of serving", SERVE_COLUMNS, serve_rows(served)))
    typer.echo(machine.line())
    files.write(markdown(command, machine, exports, served), as_json(command, machine, exports, served))


def export_rows(exports: Sequence[ExportMemory]) -> list[tuple[str, ...]]:
    """One row of text per export, in the order of ``EXPORT_COLUMNS``."""
    return [
        (
            each.kind,
            f"{each.file_bytes / 1e9:.2f}",
            f"{(each.before_export - each.before_model) / each.file_bytes:.2f}",
            f"{each.whole:.2f}",
            f"{each.seconds:.1f}",
            f"{each.difference:.1e}",
        )
        for each in exports
    ]


def serve_rows(served: Sequence[ServeMemory]) -> list[tuple[str, ...]]:
    """One row of text per served file, in the order of ``SERVE_COLUMNS``."""
    return [
        (
            each.kind,
            f"{each.file_bytes / 1e9:.2f}",
            f"{each.opened:.3f}",
            f"{each.own:.3f}",
            f"{each.mapped:.3f}",
            f"{each.open_seconds:.2f}",
        )
        for each in served
    ]


def markdown(command: str, machine: Machine, exports: Sequence[ExportMemory], served: Sequence[ServeMemory]) -> str:
    """The page that is committed."""
    rows, width = exports[0].table_rows, exports[0].width
    parts = [
        "# Memory of exporting and serving a file of more than 2 GB",
        f"`{command}`",
        machine.line(),
        f"A model with one table of {rows:,} rows x {width} in float32. Each line was measured in a fresh process that "
        "had exported or served a tiny model before; memory is resident memory above what it held then, in sizes of "
        "the file. The model itself is 1 of it while exporting.",
        markdown_table(EXPORT_COLUMNS, export_rows(exports)),
        "A served file's weights are mapped: their pages belong to the page cache, are shared by every process that "
        "maps the file, and only those that were read, with their neighbours, are resident. Own memory is what the "
        "process holds beside them, after 50 batches of 256 random rows.",
        markdown_table(SERVE_COLUMNS, serve_rows(served)),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(
    command: str, machine: Machine, exports: Sequence[ExportMemory], served: Sequence[ServeMemory]
) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "machine": asdict(machine),
        "exports": [{**asdict(each), "peak_ratio": each.whole} for each in exports],
        "served": [{**asdict(each), "opened_ratio": each.opened, "own_ratio": each.own} for each in served],
    }
