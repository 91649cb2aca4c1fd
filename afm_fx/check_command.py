"""The command ``afm-fx check``: whether exported files keep the rules of files for serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from afm_fx.command_errors import EXIT_FAILURE, reported_errors
from afm_fx.command_options import DebugOption, ForceOption
from afm_fx.onnx_check import check_onnx
from afm_fx.output_directory import refuse_existing_file, write_text


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="ONNX files.", show_default=False)],
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write the reports here as well.", show_default=False)
    ] = None,
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
