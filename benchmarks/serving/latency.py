"""Latency of a DeepFM in Criteo's shape: dense and low-rank, in every form in which it may be served."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from afm_fx.errors import UserError
from afm_fx.io import available_cores
from afm_fx.measure import Measurement, benchmark
from benchmarks.common import options
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.results import RESULTS, Part, Table, conditions, result_files
from benchmarks.serving.contenders import CONTENDERS, Entry, LatencyModel

BATCHES, THREADS = [1, 16, 64, 256, 1024, 4096], sorted({1, available_cores()})
EXPORT_COLUMNS = ("contender", "parameters", "bytes", "operators", "largest difference", "seconds to make")


def latency(
    *,
    batch_size: options.BatchSizes = BATCHES,
    threads: Annotated[list[int], typer.Option(help="Threads; may be given several times.")] = THREADS,
    seconds: Annotated[float, typer.Option(help="Time per contender and batch size.")] = 3.0,
    table_rows: options.TableRows = 1_000_000,
    contender: Annotated[
        list[str] | None,
        typer.Option(
            help="A contender to time, by its name; may be given several times, 'dense' is always there.",
            show_default="all",
        ),
    ] = None,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Time a Criteo-shaped DeepFM, dense and low-rank, in ONNX Runtime (float, int8), torch.compile and AOTInductor.

    26 tables of width 16, 13 dense features, MLP 400-400-400. Everything is compared with torch, and timed in
    interleaved rounds. The compiled contenders need a C++ compiler and about a minute together.
    """
    files = result_files(output_dir, "latency", force=force)
    names = _chosen(contender or list(CONTENDERS))
    model = LatencyModel(CriteoShape(total_rows=table_rows))
    entries: dict[str, Entry] = {}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for count in threads:
            entries = model.entries(Path(folder), names, count, entries)
            results.append(
                benchmark(
                    {name: entry.competitor for name, entry in entries.items()},
                    model.shape.batch(4 * max(batch_size), model.seed + 2),
                    batch_sizes=batch_size,
                    threads=count,
                    seconds=seconds,
                    rounds=20,
                )
            )
    exports = {
        name: {
            "parameters": entry.parameters,
            "bytes": entry.bytes,
            "operators": dict(entry.operators),
            "max_abs_difference": entry.max_abs_difference,
            "seconds": entry.seconds,
        }
        for name, entry in entries.items()
    }
    content = {"exports": exports, "results": results}
    files.write("Latency of a Criteo-shaped DeepFM on the CPU", parts(entries, results), content)


def _chosen(names: list[str]) -> list[str]:
    """The contenders to time, the reference among them."""
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise UserError(f"there is no contender '{unknown[0]}'; there are: {'; '.join(CONTENDERS)}")
    return [next(iter(CONTENDERS)), *names]


def export_rows(entries: Mapping[str, Entry]) -> list[tuple[str, ...]]:
    """One row of text per contender, under ``EXPORT_COLUMNS``."""
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


def parts(entries: Mapping[str, Entry], results: Sequence[Measurement]) -> list[Part]:
    """The page."""
    page: list[Part] = [
        "Medians in microseconds; in brackets the ratio to the first row in the same run. `latency.json` holds all. "
        "Differences are to torch on random rows, those of an int8 file to its float file on traffic.",
        Table(EXPORT_COLUMNS, export_rows(entries)),
    ]
    for result in results:
        page += [
            f"## {result.threads} thread{'s' if result.threads > 1 else ''}",
            conditions(result),
            Table(("p50", *(f"batch {size}" for size in result.batch_sizes)), median_rows(result)),
            Table(result.columns, result.rows(), left=3),
        ]
    return page
