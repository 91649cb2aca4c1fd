"""The command line ``afm-fx``: ``explain``, ``calibrate``, ``compress``, ``sweep``, ``apply`` and those
that check and time what was exported.

Exit codes: 0 done, 1 the work failed, 2 the user's input is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from afm_fx.calibration import Statistics
from afm_fx.commands.calibrate_command import calibrate
from afm_fx.commands.command_errors import EXIT_FAILURE, reported_errors
from afm_fx.commands.command_options import (
    CheckpointOption,
    DebugOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    command_of,
)
from afm_fx.commands.compress_config import CompressConfig
from afm_fx.commands.compress_files import compress_files, outputs_of
from afm_fx.commands.serving_command import bench, load
from afm_fx.commands.sweep_command import SweepConfig, sweep
from afm_fx.io import refuse_existing_file, write_text
from afm_fx.large_tables import LARGE_BYTES, ONNX_FILE, apply_to_files, export_onnx_over_files
from afm_fx.planning import Plan
from afm_fx.program import build_model, capture
from afm_fx.report import explain as explain_program
from afm_fx.runtime import check_onnx
from afm_fx.version import __version__

app = typer.Typer(
    name="afm-fx",
    help="Makes trained click-through-rate models low-rank, proves the rewrite, and exports them to ONNX.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 the input is wrong.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    app()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"afm-fx {__version__}")
        raise typer.Exit


def explain(
    model: ModelArgument,
    checkpoint: CheckpointOption = None,
    json_out: JsonOption = None,
    html_out: Annotated[
        Path | None,
        typer.Option("--html", help="Draw it into this page (needs the extra report).", show_default=False),
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Show every place of a model that can be made low-rank, with a verdict and its reason per use.

    Needs no data and changes nothing.

    Example: afm-fx explain shop.models:ctr --checkpoint ctr.pt --html explanation.html
    """
    with reported_errors(debug):
        for path in (json_out, html_out):
            if path is not None:
                refuse_existing_file(path, force=force)
        program = capture(*build_model(model, checkpoint))
        explanation = explain_program(program)
        typer.echo(f"{model}: {program.parameter_count():,} parameters, captured by {program.front_door}")
        typer.echo(explanation.table())
        if json_out is not None:
            explanation.save_json(json_out, force=force)
        if html_out is not None:
            explanation.to_html(html_out, title=model, force=force)
        written = [str(path) for path in (json_out, html_out) if path is not None]
        if written:
            typer.echo(f"\nWritten: {', '.join(written)}")


def compress(config: CompressConfig) -> None:
    """Compress a model and export it.

    Writes dense.onnx, low_rank.onnx, plan.safetensors, report.json and config.json (and low_rank.pt2 with --aoti, a
    page with --report), or nothing where anything goes wrong. All exports are checked against torch. Choose one policy:
    --budget, --logit-rmse, --auc-drop, --logloss-rise, --p50-us, --energy, --full-rank, or ranks.

    Example: afm-fx compress shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --budget 0.2 --out compressed
    """
    compressed, facts = compress_files(config)
    reports = (compressed.plan, compressed.report, facts.recovery, facts.packing, facts.precision)
    for report in reports:
        if report is not None:
            typer.echo(report.table())
    for part in (*(facts.exports or ()), *facts.buckets, *(() if facts.package is None else (facts.package,))):
        typer.echo(part.line())
    written = [name for name in outputs_of(config) if (config.out / name).exists()]
    typer.echo(f"Written to {config.out}/: {', '.join(written)}")
    if config.report is not None:
        typer.echo(f"Report: {config.report}")


def apply(
    model: ModelArgument,
    plan: Annotated[Path, typer.Option(help="The plan, as compress writes it.", show_default=False)],
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="State dict: .safetensors, an index of several (.safetensors.index.json), or a folder that "
            "torch.distributed.checkpoint wrote.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the encoded tables.", show_default=False)],
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="Statistics that the plan was made from, to make factors again for this checkpoint and tell drift.",
            show_default="the plan's factors are applied",
        ),
    ] = None,
    plan_out: Annotated[
        Path | None,
        typer.Option(help="With --statistics: write the plan with the new factors here.", show_default=False),
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help=f"Also export {ONNX_FILE} beside the tables, which refers to their files.")
    ] = False,
    large_bytes: Annotated[
        int, typer.Option(min=1, help="Tables of so many bytes or more are read in blocks, smaller ones loaded.")
    ] = LARGE_BYTES,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Apply a saved plan to a checkpoint, of the same model or of a later one.

    Tables are read and written in blocks and never held, so they may be larger than memory. The folder changes in one
    step when everything is written; tables that are there already are not made again.

    Example: afm-fx apply shop.models:ctr --plan plan.safetensors --checkpoint new.safetensors --out tables --force
    """
    with reported_errors(debug):
        if plan_out is not None:
            refuse_existing_file(plan_out, force=force)
        known = None if statistics is None else Statistics.load(statistics)
        done = apply_to_files(
            model, checkpoint, Plan.load(plan), out, statistics=known, force=force, large_bytes=large_bytes
        )
        typer.echo(done.table())
        if plan_out is not None:
            done.plan.save(plan_out, force=force)
        if onnx:
            typer.echo(export_onnx_over_files(done, force=True).table())


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="ONNX files.", show_default=False)],
    json_out: JsonOption = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Check exported ONNX files: standard operators, no control flow, weights that lie where they should, metadata.

    Nothing of a file is executed. Exit codes: 0 every rule is kept, 1 one is broken, 2 one is no ONNX file.

    Example: afm-fx check compressed/low_rank.onnx
    """
    with reported_errors(debug):
        if json_out is not None:
            refuse_existing_file(json_out, force=force)
        reports = [check_onnx(file) for file in files]
        for report in reports:
            typer.echo(report.table())
        if json_out is not None:
            document = [json.loads(report.to_json()) for report in reports]
            write_text(json_out, json.dumps(document, indent=2) + "\n", force=force)
        if not all(report.passed for report in reports):
            raise typer.Exit(EXIT_FAILURE)


for command in (
    explain,
    calibrate,
    command_of(CompressConfig, compress),
    apply,
    command_of(SweepConfig, sweep),
    bench,
    load,
    check,
):
    app.command()(command)
