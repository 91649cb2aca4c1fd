"""The command line of ``benchmarks/latency.py``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from afm_fx.errors import UserError
from afm_fx.io import available_cores, render_table
from afm_fx.measure import Measurement, benchmark
from benchmarks.criteo_shape import CriteoShape
from benchmarks.exit_codes import exit_codes
from benchmarks.latency_contenders import CONTENDERS, Entry, LatencyModel
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

EXPORT_COLUMNS = ("contender", "parameters", "bytes", "operators", "largest difference", "seconds to make")

app = typer.Typer(add_completion=False)


@app.command()
def latency(
    *,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="Rows per call; may be given several times. [default: 1 16 64 256 1024 4096]"),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads; may be given several times. [default: 1 and all cores]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time per contender and batch size.")] = 3.0,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 20,
    table_rows: Annotated[int, typer.Option(help="Rows of all 26 tables together.")] = 1_000_000,
    code_width: Annotated[int, typer.Option(help="Width of the tables' codes.")] = 2,
    mlp_rank: Annotated[int, typer.Option(help="Rank of the MLP's layers after the first.")] = 64,
    contender: Annotated[
        list[str] | None,
        typer.Option(help="A contender to time, by its name; may be given several times, 'dense' is always there."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, traffic and the order of contenders.")] = 0,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Time a Criteo-shaped DeepFM: dense and low-rank, in ONNX Runtime (float, int8), torch.compile and AOTInductor.

    26 tables of width 16, 13 dense features, MLP 400-400-400. Everything is compared with torch, and timed in
    interleaved rounds; the results are printed, and written as markdown and JSON. The compiled contenders need a C++
    compiler and about a minute together. Exit code 2: a mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "latency", force=force)
        names = _chosen(contender or list(CONTENDERS))
        model = LatencyModel(CriteoShape(total_rows=table_rows), code_width, mlp_rank, seed=seed)
        entries: dict[str, Entry] = {}
        results = []
        with tempfile.TemporaryDirectory() as folder:
            for count in threads or sorted({1, available_cores()}):
                entries = model.entries(Path(folder), names, count, entries)
                results.append(
                    benchmark(
                        {name: entry.competitor for name, entry in entries.items()},
                        model.shape.batch(4 * max(batch_size or (4096,)), seed + 2),
                        batch_sizes=batch_size or (1, 16, 64, 256, 1024, 4096),
                        threads=count,
                        seconds=seconds,
                        rounds=rounds,
                    )
                )
    command = shown_command("benchmarks/latency.py", sys.argv[1:])
    typer.echo(render_table("Exported", EXPORT_COLUMNS, export_rows(entries)))
    for result in results:
        typer.echo(result.table())
    files.write(markdown(command, entries, results), as_json(command, entries, results))


def _chosen(names: list[str]) -> list[str]:
    """The contenders to time, the reference among them."""
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise UserError(f"there is no contender '{unknown[0]}'; there are: {'; '.join(CONTENDERS)}")
    return [next(iter(CONTENDERS)), *names]


def export_rows(entries: dict[str, Entry]) -> list[tuple[str, ...]]:
    """One row of text per contender, in the order of ``EXPORT_COLUMNS``."""
    return [
        (
            entry.name,
            f"{entry.parameters:,}",
            "" if entry.bytes is None else f"{entry.bytes:,}",
            "" if entry.node_count is None else str(entry.node_count),
            "not compared" if entry.max_abs_difference is None else f"{entry.max_abs_difference:.1e}",
            f"{entry.seconds:.1f}",
        )
        for entry in entries.values()
    ]


def median_rows(result: Measurement) -> list[tuple[str, ...]]:
    """One row per contender: its median at every batch size, and its ratio to the first contender's."""
    rows = []
    for name in result.contenders:
        timings = [result.timing(name, size) for size in result.batch_sizes]
        rows.append((name, *(f"{timing.p50_us:,.0f} ({timing.ratio:.2f})" for timing in timings)))
    return rows


def markdown(command: str, entries: dict[str, Entry], results: list[Measurement]) -> str:
    """The page that is committed."""
    parts = [
        "# Latency of a Criteo-shaped DeepFM on the CPU",
        f"`{command}`",
        "Medians in microseconds; in brackets the ratio to the first row in the same run. `latency.json` holds all. "
        "Differences are to torch on random rows, those of an int8 file to its float file on traffic.",
        markdown_table(EXPORT_COLUMNS, export_rows(entries)),
    ]
    for result in results:
        parts += [
            f"## {result.threads} thread{'s' if result.threads > 1 else ''}",
            result.conditions().replace("\n", "  \n"),
            markdown_table(("p50", *(f"batch {size}" for size in result.batch_sizes)), median_rows(result)),
            markdown_table(result.columns, result.rows(), left=3),
        ]
    return "\n\n".join(parts) + "\n"


def as_json(command: str, entries: dict[str, Entry], results: list[Measurement]) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "exports": {
            name: {
                "parameters": entry.parameters,
                "bytes": entry.bytes,
                "operators": dict(entry.operators),
                "max_abs_difference": entry.max_abs_difference,
                "seconds": entry.seconds,
            }
            for name, entry in entries.items()
        },
        "results": [json.loads(result.to_json()) for result in results],
    }
