"""The command line ``afm-fx``: ``explain``, ``calibrate``, ``compress``, ``sweep``, ``apply`` and those
that check and time what was exported.

Exit codes: 0 done, 1 the work failed, 2 the user's input is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx import __version__
from afm_fx.apply_command import apply
from afm_fx.bench_command import bench
from afm_fx.calibrate_command import calibrate
from afm_fx.capture import capture
from afm_fx.check_command import check
from afm_fx.command_errors import reported_errors
from afm_fx.command_options import CheckpointOption, DebugOption, ForceOption, ModelArgument, command_of
from afm_fx.compress_command import compress
from afm_fx.compress_config import CompressConfig
from afm_fx.explanation import explain as explain_program
from afm_fx.load_command import load
from afm_fx.output_directory import refuse_existing_file
from afm_fx.sweep_command import sweep
from afm_fx.user_model import build_model

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


@app.command()
def explain(
    model: ModelArgument,
    checkpoint: CheckpointOption = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the explanation here as well.", show_default=False)
    ] = None,
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


app.command()(calibrate)
app.command()(command_of(CompressConfig, compress))
app.command()(sweep)
app.command()(apply)
app.command()(check)
app.command()(bench)
app.command()(load)
