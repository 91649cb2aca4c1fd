"""The command line of ``benchmarks/packing.py``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from afm_fx.io import render_table
from afm_fx.measure import Measurement
from benchmarks.criteo_shape import CriteoShape
from benchmarks.ctr_models import check_model_name
from benchmarks.exit_codes import exit_codes
from benchmarks.packing_models import COVERED, FAILS_AT_ONE_ROW, PackedModel, PackingShape
from benchmarks.result_files import RESULTS, markdown_table, result_files, shown_command

KINDS = {
    "gathers": ("Gather",), "products": ("Gemm", "MatMul", "Einsum"), "casts": ("Cast",), "slices": ("Slice", "Split"),
    "concats": ("Concat",),
}  # fmt: skip

app = typer.Typer(add_completion=False)


@app.command()
def packing(
    *,
    model: Annotated[list[str] | None, typer.Option(help="Model; may be given several times. [default: all]")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Rows per call; several times; 0 to count only. [default: 1 64 1024]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time per model, version and batch size.")] = 1.0,
    table_rows: Annotated[int, typer.Option(help="Rows of all 26 tables together.")] = 100_000,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Count the operators of every model before and after packing, and time both in ONNX Runtime.

    26 tables of width 16, 13 dense features. Exit code 2: a mistake in the call.
    """
    with exit_codes():
        files = result_files(output_dir, "packing", force=force)
        names = tuple(model or COVERED)
        for name in names:
            check_model_name(name, COVERED)
        sizes = tuple(size for size in (batch_size or (1, 64, 1024)) if size)
        shape = PackingShape(CriteoShape(total_rows=table_rows), batch_sizes=sizes, seconds=seconds)
        with tempfile.TemporaryDirectory() as folder:
            measured = list(shape.measure(Path(folder), names))
    command = shown_command("benchmarks/packing.py", sys.argv[1:])
    typer.echo(render_table("Packed", columns(sizes), rows(sizes, measured)))
    files.write(markdown(command, sizes, measured), as_json(command, measured))


def columns(sizes: tuple[int, ...]) -> tuple[str, ...]:
    """Heads of the table."""
    return ("model", "operators", *KINDS, *(f"faster at batch {size}" for size in sizes))


def rows(sizes: tuple[int, ...], measured: list[PackedModel]) -> list[tuple[str, ...]]:
    """One row of text per model: counts before and after, and the ratio of medians."""
    result = []
    for each in measured:
        before, after = dict(each.before.operators), dict(each.after.operators)
        counts = [
            f"{sum(before.get(kind, 0) for kind in kinds)} -> {sum(after.get(kind, 0) for kind in kinds)}"
            for kinds in KINDS.values()
        ]
        timing = each.timing
        timed = () if timing is None else timing.batch_sizes
        ratios = [_speed_up(timing, size) if timing is not None and size in timed else "fails" for size in sizes]
        result.append((each.name, f"{each.before.node_count} -> {each.after.node_count}", *counts, *ratios))
    return result


def _speed_up(timing: Measurement, size: int) -> str:
    before, after = (timing.timing(name, size).p50_us for name in ("as it is", "packed"))
    return f"{before / after:.2f}x"


def markdown(command: str, sizes: tuple[int, ...], measured: list[PackedModel]) -> str:
    """The page that is committed."""
    timing = measured[0].timing
    conditions = "" if timing is None else timing.conditions().replace("\n", "  \n") + "\n\n"
    text = "Operators of the ONNX files before and after packing. Medians of both were taken in one interleaved run."
    table = markdown_table(columns(sizes), rows(sizes, measured))
    notes = [f"{each.name} at batch 1: {FAILS_AT_ONE_ROW[each.name]}." for each in measured if _fails(each, sizes)]
    title = "# Packing the models of deepctr-torch"
    return "\n\n".join((title, f"`{command}`", text, f"{conditions}{table}", *notes)) + "\n"


def _fails(model: PackedModel, sizes: tuple[int, ...]) -> bool:
    """Whether a batch of one row was asked for and could not be timed for a reason of the model's own."""
    timed = () if model.timing is None else model.timing.batch_sizes
    return 1 in sizes and 1 not in timed and model.name in FAILS_AT_ONE_ROW


def as_json(command: str, measured: list[PackedModel]) -> dict[str, Any]:
    """The same as data."""
    return {
        "command": command,
        "models": [
            {
                "model": each.name,
                "operators_before": dict(each.before.operators),
                "operators_after": dict(each.after.operators),
                "max_abs_difference": each.after.max_abs_difference,
                "timing": None if each.timing is None else json.loads(each.timing.to_json()),
            }
            for each in measured
        ],
    }
