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
from afm_fx.errors import FileFormatError
from afm_fx.measurement import Measurement
from afm_fx.measurement_changes import compare_measurements
from afm_fx.output_directory import refuse_existing_file, write_text


def bench(
    contenders: ContendersArgument,
    inputs: InputsOption = None,
    batch_sizes: Annotated[str, typer.Option(help="Rows per call, comma-separated.")] = "1,16,256,4096",
    threads: ThreadsOption = 1,
    seconds: Annotated[float, typer.Option(help="Time for each contender at each batch size, about.")] = 1.0,
    checkpoint: CheckpointOption = None,
    old: Annotated[
        Path | None,
        typer.Option("--compare", help="A result written with --json: tell what changed.", show_default=False),
    ] = None,
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
        before = None if old is None else read_measurement(old)
        batch = contender_inputs(entered, inputs, max(sizes) * MAX_DIFFERENT_BATCHES)
        result = benchmark(entered, batch, batch_sizes=sizes, threads=threads, seconds=seconds)
        typer.echo(result.table())
        if before is not None:
            typer.echo(compare_measurements(before, result))
        if json_out is not None:
            write_text(json_out, result.to_json() + "\n", force=force)


def read_measurement(path: Path) -> Measurement:
    """A result that ``--json`` wrote.

    Raises:
        FileFormatError: there is no such file, or it is damaged, of another kind or version.
    """
    try:
        return Measurement.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"'{path}' cannot be read: {error}") from error
    except FileFormatError as error:
        raise FileFormatError(f"'{path}': {error}") from error
