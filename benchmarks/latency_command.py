"""The command line of ``benchmarks/latency.py``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from afm_fx.benchmark import benchmark
from afm_fx.benchmark_result import BenchmarkResult
from afm_fx.errors import AfmFxError, UserError
from afm_fx.machine import available_cores
from afm_fx.onnx_export import ExportReport
from afm_fx.tables import render_table
from benchmarks.criteo_shape import CriteoShape
from benchmarks.latency_contenders import LatencyModel
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

EXPORT_COLUMNS = ("contender", "parameters", "bytes", "operators", "largest difference to torch")

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
    seed: Annotated[int, typer.Option(help="Of weights, traffic and the order of contenders.")] = 0,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Time a Criteo-shaped DeepFM on ONNX Runtime: dense and low-rank, packed and not, and the authors' structure.

    26 tables of width 16, 13 dense features, MLP 400-400-400. Everything is exported, checked against torch, and timed
    in interleaved rounds; the results are printed, and written as markdown and JSON. Exit code 2: a mistake in the
    call.
    """
    try:
        files = result_files(output_dir, "latency", force=force)
        model = LatencyModel(CriteoShape(total_rows=table_rows), code_width, mlp_rank, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            exports = model.export(Path(folder))
            results = [
                benchmark(
                    {name: report.path for name, report in exports.items()},
                    model.shape.batch(4 * max(batch_size or (4096,)), seed + 2),
                    batch_sizes=batch_size or (1, 16, 64, 256, 1024, 4096),
                    threads=count,
                    seconds=seconds,
                    rounds=rounds,
                    seed=seed,
                )
                for count in threads or sorted({1, available_cores()})
            ]
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except AfmFxError as error:
        typer.echo(f"failed: {error}", err=True)
        raise typer.Exit(1) from error
    command = shown_command("benchmarks/latency.py", sys.argv[1:])
    typer.echo(render_table("Exported", EXPORT_COLUMNS, export_rows(exports)))
    for result in results:
        typer.echo(result.table())
    files.write(markdown(command, exports, results), as_json(command, exports, results))


def export_rows(exports: dict[str, ExportReport]) -> list[tuple[str, ...]]:
    """One row of text per exported file, in the order of ``EXPORT_COLUMNS``."""
    return [
        (
            name,
            f"{report.parameters:,}",
            f"{report.bytes:,}",
            str(report.node_count),
            "not checked" if report.max_abs_difference is None else f"{report.max_abs_difference:.1e}",
        )
        for name, report in exports.items()
    ]


def median_rows(result: BenchmarkResult) -> list[tuple[str, ...]]:
    """One row per contender: its median at every batch size, and its ratio to the first contender's."""
    rows = []
    for name in result.contenders:
        timings = [result.timing(name, size) for size in result.settings.batch_sizes]
        rows.append((name, *(f"{timing.p50_us:,.0f} ({timing.ratio:.2f})" for timing in timings)))
    return rows


def markdown(command: str, exports: dict[str, ExportReport], results: list[BenchmarkResult]) -> str:
    """The page that is committed."""
    parts = [
        "# Latency of a Criteo-shaped DeepFM on ONNX Runtime",
        f"`{command}`",
        "Medians in microseconds; in brackets the ratio to the first row in the same run. `latency.json` holds all.",
        markdown_table(EXPORT_COLUMNS, export_rows(exports)),
    ]
    for result in results:
        parts += [
            f"## {result.settings.threads} thread{'s' if result.settings.threads > 1 else ''}",
            result.conditions().replace("\n", "  \n"),
            markdown_table(("p50", *(f"batch {size}" for size in result.settings.batch_sizes)), median_rows(result)),
            markdown_table(result.columns, result.rows(), left=3),
        ]
    return "\n\n".join(parts) + "\n"


def as_json(command: str, exports: dict[str, ExportReport], results: list[BenchmarkResult]) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "exports": {
            name: {
                "parameters": report.parameters,
                "bytes": report.bytes,
                "operators": dict(report.operators),
                "max_abs_difference": report.max_abs_difference,
            }
            for name, report in exports.items()
        },
        "results": [json.loads(result.to_json()) for result in results],
    }
