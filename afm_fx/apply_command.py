"""The command ``afm-fx apply``: a plan applied to a checkpoint whose tables need not fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx.absent_tables import LARGE_BYTES
from afm_fx.apply_files import apply_to_files
from afm_fx.calibration import Statistics
from afm_fx.command_errors import reported_errors
from afm_fx.command_options import DebugOption, ForceOption, ModelArgument
from afm_fx.onnx_over_files import NAME, export_onnx_over_files
from afm_fx.output_directory import refuse_existing_file
from afm_fx.plan import Plan


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
        bool, typer.Option("--onnx", help=f"Also export {NAME} beside the tables, which refers to their files.")
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
