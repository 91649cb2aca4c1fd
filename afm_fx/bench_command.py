"""The command ``afm-fx bench``: closed-loop latency and throughput of files and models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx.benchmark import MAX_DIFFERENT_BATCHES, benchmark
from afm_fx.command_errors import reported_errors
from afm_fx.command_options import CheckpointOption, DebugOption, ForceOption, whole_numbers
from afm_fx.contender_names import (
    ContendersArgument,
    InputsOption,
    ThreadsOption,
    contender_inputs,
    parse_contenders,
)
from afm_fx.output_directory import refuse_existing_file, write_text


def bench(
    contenders: ContendersArgument,
    inputs: InputsOption = None,
    batch_sizes: Annotated[str, typer.Option(help="Rows per call, comma-separated.")] = "1,16,256,4096",
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option(help="Time for each contender at each batch size, about.")] = 1.0,
    checkpoint: CheckpointOption = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the result here as well.", show_default=False)
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Time ONNX files, AOTInductor packages and models side by side, in interleaved runs.

    Percentiles that too few calls were made for are not given: p99 needs 299 calls, p99.9 2,995.

    Example: afm-fx bench dense=out/dense.onnx low-rank=out/low_rank.onnx --inputs clicks.npz
    """
    with reported_errors(debug):
        entered = parse_contenders(contenders, checkpoint)
        sizes = whole_numbers(batch_sizes)
        if json_out is not None:
            refuse_existing_file(json_out, force=force)
        batch = contender_inputs(entered, inputs, max(sizes) * MAX_DIFFERENT_BATCHES)
        result = benchmark(entered, batch, batch_sizes=sizes, threads=threads, seconds=seconds)
        typer.echo(result.table())
        if json_out is not None:
            write_text(json_out, result.to_json() + "\n", force=force)
