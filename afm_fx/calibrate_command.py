"""The command ``afm-fx calibrate``: statistics of a data set, by one process or by all that torchrun starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch.utils import _pytree as pytree

from afm_fx.calibration import calibrate as calibrate_program
from afm_fx.calibration_checkpoint import remove_checkpoints
from afm_fx.capture import capture
from afm_fx.command_errors import reported_errors
from afm_fx.command_options import CheckpointOption, DebugOption, ForceOption, ModelArgument, names_of
from afm_fx.compression import SENSITIVITY_ROWS
from afm_fx.data_files import open_data
from afm_fx.file_batches import FileBatches
from afm_fx.output_directory import refuse_existing_file
from afm_fx.process_groups import rank_and_size
from afm_fx.torchrun_group import joined_group, own_device
from afm_fx.unit_calibration import CHECKPOINT_BATCHES
from afm_fx.user_model import build_model


def calibrate(
    model: ModelArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="Calibration rows, no labels needed: .npz, .npy or .parquet, or a folder of Parquet files.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.", show_default=False)],
    checkpoint: CheckpointOption = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of the data to use, in the model's order, comma-separated.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 4096,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Rows at most.", show_default="all of them")] = None,
    sensitivity_rows: Annotated[
        int, typer.Option(min=0, help="Take gradients on so many rows, which measured plans need.")
    ] = SENSITIVITY_ROWS,
    sampled_rows: Annotated[
        int, typer.Option(min=0, help="Keep so many of the rows in the file, for a later checkpoint's plan.")
    ] = 0,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            help="Write what was seen here now and then; the same command goes on from it. Emptied at the end.",
            show_default=False,
        ),
    ] = None,
    checkpoint_batches: Annotated[
        int, typer.Option(min=1, help="With --checkpoint-dir: write after so many batches of a process.")
    ] = CHECKPOINT_BATCHES,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the model runs; processes on cuda take one GPU each.")
    ] = "cpu",
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Calibrate a model on a data set, and write the statistics that plans are made from.

    Started by torchrun, its processes share the data, and the file is the same as that of one process.

    Example: torchrun --nproc-per-node 4 -m afm_fx calibrate shop.models:ctr --data log --out statistics.safetensors
    """
    with reported_errors(debug):
        refuse_existing_file(out, force=force)
        place = own_device(device)
        names = names_of(columns)
        with joined_group(place) as group:
            rank, world = rank_and_size(group)
            module, inputs = build_model(model, checkpoint)
            program = capture(module.to(place), pytree.tree_map(lambda leaf: _moved(leaf, place), inputs))
            statistics = calibrate_program(
                program,
                FileBatches(open_data(data), program, batch_size, names),
                max_rows=max_rows,
                sensitivity_rows=sensitivity_rows,
                sampled_rows=sampled_rows,
                group=group,
                checkpoint_dir=checkpoint_dir,
                checkpoint_batches=checkpoint_batches,
            )
            if rank != 0:
                return
            statistics.save(out, force=force)
            if checkpoint_dir is not None:
                remove_checkpoints(checkpoint_dir)
            by = f", by {world} processes" if world > 1 else ""
            typer.echo(
                f"{statistics.rows:,} rows in {statistics.batches:,} batches, {len(statistics.moments)} sites{by}\n"
                f"Written: {out}"
            )


def _moved(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf
