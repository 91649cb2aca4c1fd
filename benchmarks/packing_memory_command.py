"""The command line of ``benchmarks/packing_memory.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from afm_fx.io import Machine, render_table, this_machine
from benchmarks.exit_codes import exit_codes
from benchmarks.pack_memory import PackMemory, measure_apart
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

COLUMNS = (
    "largest table", "sources", "tables GB", "before / tables", "peak / tables", "after / tables",
    "bound / tables", "capture s", "pack s",
)  # fmt: skip
RATIOS = (1.0, 7_500.0, 100_000.0)
"""Tables of one size, a largest table of 30 % as in the Criteo display-advertising data, and one of 37 %."""

app = typer.Typer(add_completion=False)


@app.command()
def packing_memory(
    *,
    rows: Annotated[int, typer.Option(help="Rows of all 26 embedding tables together.")] = 34_000_000,
    largest_over_smallest: Annotated[
        list[float] | None,
        typer.Option(
            help="Rows of the largest over the smallest table; several times. "
            f"[default: {' '.join(f'{ratio:g}' for ratio in RATIOS)}]"
        ),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Measure peak memory and time of packing a DeepFM with 26 tables 16 wide and as many linear terms.

    Every case runs in a fresh process, with and without letting the tables go one by one (`free_sources`). It needs
    three times the tables' memory. Exit code 2: a mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "packing_memory", force=force)
        ratios = largest_over_smallest or RATIOS
        measured = [measure_apart(rows, ratio, free_sources=free) for free in (True, False) for ratio in ratios]
    command, machine = shown_command("benchmarks/packing_memory.py", sys.argv[1:]), this_machine()
    typer.echo(render_table("Memory of packing", COLUMNS, memory_rows(measured), left=2))
    typer.echo(machine.line())
    files.write(markdown(command, machine, measured), as_json(command, machine, measured))


def memory_rows(measured: Sequence[PackMemory]) -> list[tuple[str, ...]]:
    """One row of text per case, in the order of ``COLUMNS``."""
    return [
        (
            f"{each.largest_share:.0%}",
            "let go" if each.free_sources else "kept",
            f"{each.table_bytes / 1e9:.2f}",
            f"{each.before:.2f}",
            f"{each.whole:.2f}",
            f"{each.kept:.2f}",
            f"{each.bound:.2f}",
            f"{each.capture_seconds:.1f}",
            f"{each.pack_seconds:.1f}",
        )
        for each in measured
    ]


def markdown(command: str, machine: Machine, measured: Sequence[PackMemory]) -> str:
    """The page that is committed."""
    parts = [
        "# Memory of packing large tables",
        f"`{command}`",
        machine.line(),
        "Resident memory of a fresh process above what it holds without a model, in sizes of all tables (embeddings "
        "and linear terms); the program given is counted and usable afterwards.",
        "A tensor is freed as a whole, so at the end of copying the largest table both it and its copy are there: with "
        "sources let go no order of copies stays below `1 + largest table's share`. The linear terms come on top: "
        "packing stores what a row adds to the logit instead of its linear weight, which cannot be a view of the "
        "packed table and stays in the program given. That is the column of bounds; with sources kept it is 2 and "
        "the new terms.",
        markdown_table(COLUMNS, memory_rows(measured), left=2),
    ]
    return "\n\n".join(parts) + "\n"


def as_json(command: str, machine: Machine, measured: Sequence[PackMemory]) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "machine": asdict(machine),
        "cases": [
            {**asdict(each), "peak_ratio": each.whole, "after_ratio": each.kept, "bound_ratio": each.bound}
            for each in measured
        ],
    }
