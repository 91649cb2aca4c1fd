"""The commands ``afm-fx bench`` and ``afm-fx load``: files and models side by side, called one call after the other or
under the load of MLPerf LoadGen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import afm_fx
from afm_fx.commands.command_errors import EXIT_FAILURE
from afm_fx.commands.command_options import (
    OUTPUT,
    CheckpointOption,
    ForceOption,
    JsonOption,
    numbers_of,
)
from afm_fx.commands.contender_names import (
    ContendersArgument,
    InputsOption,
    ThreadsOption,
    contender_inputs,
    parse_contenders,
)
from afm_fx.errors import OutputExistsError
from afm_fx.io import refuse_existing_file, write_text


def bench(
    contenders: ContendersArgument,
    inputs: InputsOption = None,
    batch_sizes: Annotated[
        str, typer.Option(metavar="ROWS,...", help="Rows per call, comma-separated.")
    ] = "1,16,256,4096",
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option(help="Time for each contender at each batch size, about.")] = 1.0,
    checkpoint: CheckpointOption = None,
    json_out: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Time ONNX files, AOTInductor packages and models side by side, in interleaved runs.

    Percentiles that too few calls were made for are not given: p99 needs 299 calls, p99.9 2,995.

    Example: afm-fx bench dense=out/dense.onnx low-rank=out/low_rank.onnx --inputs clicks.npz
    """
    sizes = numbers_of(batch_sizes, "batch sizes", int)
    entered = parse_contenders(contenders, checkpoint)
    if json_out is not None:
        refuse_existing_file(json_out, force=force)
    batch = contender_inputs(entered, inputs, max(sizes) * afm_fx.measure.MAX_DIFFERENT_BATCHES)
    result = afm_fx.benchmark(entered, batch, batch_sizes=sizes, threads=threads, seconds=seconds)
    _report(result, json_out, force=force)


def load(
    contenders: ContendersArgument,
    latency_bound: Annotated[
        float, typer.Option(metavar="MS", help="Bound of the 99th percentile in milliseconds.", show_default=False)
    ],
    qps: Annotated[
        float | None,
        typer.Option(help="Requests a second.", show_default="the highest that holds the bound is sought"),
    ] = None,
    inputs: InputsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="ROWS", help="Rows of a request.")] = 1,
    seconds: Annotated[float, typer.Option(help="Duration of a run at least.")] = 10.0,
    min_queries: Annotated[int, typer.Option(min=1, metavar="N", help="Requests of a run at least.")] = 1000,
    threads: ThreadsOption = 1,
    checkpoint: CheckpointOption = None,
    out: Annotated[
        Path,
        typer.Option(help="Directory of LoadGen's own logs, one folder for every run.", rich_help_panel=OUTPUT),
    ] = Path("load-logs"),
    json_out: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Send requests at random times to files or models, with MLPerf LoadGen (needs the extra loadgen).

    All numbers are LoadGen's, read from its logs, which are kept.
    Exit code 1: LoadGen calls a run invalid, or a request was lost.

    Example: afm-fx load dense=out/dense.onnx low-rank=out/low_rank.onnx --latency-bound 10
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise OutputExistsError(f"'{out}' exists already; choose another --out or add --force")
    if json_out is not None:
        refuse_existing_file(json_out, force=force)
    entered = parse_contenders(contenders, checkpoint)
    batch = contender_inputs(entered, inputs, batch_size * afm_fx.measure.requests_of(batch_size))
    result = afm_fx.load_test(
        entered,
        batch,
        out,
        latency_bound_ms=latency_bound,
        qps=qps,
        batch_size=batch_size,
        seconds=seconds,
        min_queries=min_queries,
        threads=threads,
    )
    _report(result, json_out, force=force)
    if not result.valid:
        raise typer.Exit(EXIT_FAILURE)


def _report(
    result: afm_fx.measure.Measurement | afm_fx.measure.LoadResult, json_out: Path | None, *, force: bool
) -> None:
    typer.echo(result.table())
    if json_out is not None:
        write_text(json_out, result.to_json() + "\n", force=force)
