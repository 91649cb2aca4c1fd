"""The command line ``afm-fx``: ``explain``, ``calibrate``, ``compress``, ``sweep``, ``apply`` and those
that check and time what was exported.

Exit codes: 0 done, 1 the work failed, 2 the user's input is wrong.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import afm_fx
from afm_fx.commands.calibrate_command import calibrate
from afm_fx.commands.command_errors import EXIT_FAILURE, reported_errors
from afm_fx.commands.command_options import (
    DATA,
    OUTPUT,
    CheckpointOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    command_of,
    existing,
)
from afm_fx.commands.compress_config import CompressConfig
from afm_fx.commands.serving_command import (
    bench,
    load,
)
from afm_fx.commands.sweep_command import sweep
from afm_fx.errors import UserError
from afm_fx.io import refuse_existing_file, write_text
from afm_fx.version import __version__

SHARED = "calibrate"
"""The command whose work processes of torchrun share."""


class Commands(TyperGroup):
    """All commands: each tells its errors in one line, those of its options too."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that the words name."""
        with reported_errors(debug=ctx.params["debug"]):
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words name.

        Raises:
            UserError: torchrun started several processes, and the command does not share its work among them.
        """
        found = super().resolve_command(ctx, args)
        processes = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
        if processes != "1" and found[0] != SHARED:
            raise UserError(
                f"'{found[0]}' would do the whole work in each of the {processes} processes that torchrun started, and "
                f"all would write the same files. Start it once, without torchrun; passes over many rows are shared by "
                f"'torchrun -m afm_fx {SHARED} ... --out FILE', and 'compress --statistics FILE' goes on from there"
            )
        return found


app = typer.Typer(
    name="afm-fx",
    cls=Commands,
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
    debug: Annotated[  # noqa: ARG001 - read by Commands
        bool, typer.Option("--debug", help="Before a command: show the traceback of its error.")
    ] = False,
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
        typer.Option(
            "--html",
            help="Draw it into this page (needs the extra report).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Show every place of a model that can be made low-rank, with a verdict and its reason per use.

    Needs no data and changes nothing.

    Example: afm-fx explain shop.models:ctr --checkpoint ctr.pt --html explanation.html
    """
    for path in (json_out, html_out):
        if path is not None:
            refuse_existing_file(path, force=force)
    program = afm_fx.capture(*afm_fx.program.build_model(model, checkpoint))
    explanation = afm_fx.explain(program)
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

    Writes dense.onnx, low_rank.onnx, plan.safetensors, report.json and config.json (with --aoti
    low_rank.pt2, with --report a page), or nothing where anything goes wrong. All exports are
    checked against torch.

    Example: afm-fx compress shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --budget 0.2 --out compressed
    """
    compressed, facts = afm_fx.commands.write_compressed(config)
    reports = (compressed.plan, compressed.report, facts.recovery, facts.packing, facts.precision)
    for report in reports:
        if report is not None:
            typer.echo(report.table())
    for part in (*(facts.exports or ()), *facts.buckets, *(() if facts.package is None else (facts.package,))):
        typer.echo(part.line())
    written = [name for name in afm_fx.commands.outputs_of(config) if (config.out / name).exists()]
    typer.echo(f"Written to {config.out}/: {', '.join(written)}")
    if config.report is not None:
        typer.echo(f"Report: {config.report}")


def apply(
    model: ModelArgument,
    plan: Annotated[
        Path,
        typer.Option(
            help="The plan, as compress writes it.",
            show_default=False,
            callback=existing("file"),
            rich_help_panel=DATA,
        ),
    ],
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="State dict: .safetensors, an index of several (.safetensors.index.json), or a folder that "
            "torch.distributed.checkpoint wrote.",
            show_default=False,
            callback=existing("checkpoint"),
            rich_help_panel=DATA,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the encoded tables.", show_default=False, rich_help_panel=OUTPUT)
    ],
    statistics: Annotated[
        Path | None,
        typer.Option(
            help="Statistics that the plan was made from, to make factors again for this checkpoint and tell drift.",
            show_default="the plan's factors are applied",
            callback=existing("file"),
            rich_help_panel=DATA,
        ),
    ] = None,
    plan_out: Annotated[
        Path | None,
        typer.Option(
            help="With --statistics: write the plan with the new factors here.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx",
            help="Also export low_rank.onnx beside the tables, which refers to their files.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    large_bytes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BYTES",
            help="Tables of so many bytes or more are read in blocks, smaller ones loaded.",
            show_default="1 MiB",
            rich_help_panel=DATA,
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Apply a saved plan to a checkpoint, of the same model or of a later one.

    Tables are read and written in blocks and never held, so they may be larger than memory.
    The folder changes in one step when everything is written; tables that are there already are
    not made again.

    Example: afm-fx apply shop.models:ctr --plan plan.safetensors --checkpoint new.safetensors --out tables --force
    """
    if plan_out is not None:
        refuse_existing_file(plan_out, force=force)
    done = afm_fx.apply_to_files(
        model,
        checkpoint,
        afm_fx.Plan.load(plan),
        out,
        statistics=None if statistics is None else afm_fx.Statistics.load(statistics),
        force=force,
        large_bytes=large_bytes or afm_fx.large_tables.LARGE_BYTES,
    )
    typer.echo(done.table())
    if plan_out is not None:
        done.plan.save(plan_out, force=force)
    if onnx:
        typer.echo(afm_fx.export_onnx_over_files(done, force=True).table())


def check(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="ONNX files.", show_default=False, callback=existing("ONNX file")),
    ],
    json_out: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Check exported ONNX files: standard operators, no control flow, weights that lie where they should, metadata.

    Nothing of a file is executed.
    Exit codes: 0 every rule is kept, 1 one is broken, 2 one is no ONNX file.

    Example: afm-fx check compressed/low_rank.onnx
    """
    if json_out is not None:
        refuse_existing_file(json_out, force=force)
    reports = [afm_fx.check_onnx(file) for file in files]
    for report in reports:
        typer.echo(report.table())
    if json_out is not None:
        document = [json.loads(report.to_json()) for report in reports]
        write_text(json_out, json.dumps(document, indent=2) + "\n", force=force)
    if not all(report.passed for report in reports):
        raise typer.Exit(EXIT_FAILURE)


def _unwrapped(text: str) -> str:
    """A docstring with one line a paragraph, which a terminal of any width breaks as it needs."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


for command in (
    explain,
    calibrate,
    command_of(CompressConfig, compress),
    apply,
    sweep,
    bench,
    load,
    check,
):
    app.command(help=_unwrapped(command.__doc__ or ""))(command)
