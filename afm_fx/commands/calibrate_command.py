"""The command ``afm-fx calibrate``: statistics of a data set, or of a share of it, and the sum of shares."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch.utils import _pytree as pytree

from afm_fx.calibration import Statistics, calibrate as calibrate_program, missing_shares
from afm_fx.commands.command_errors import reported_errors
from afm_fx.commands.command_options import CheckpointOption, DebugOption, ForceOption, names_of
from afm_fx.data import FileBatches, open_data
from afm_fx.errors import UserError
from afm_fx.io import joined_group, rank_and_size, refuse_existing_file
from afm_fx.planning import SENSITIVITY_ROWS
from afm_fx.program import build_model, capture


def calibrate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="package.module:factory; with --merge files of statistics.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Calibration rows, no labels needed: .npz, .npy or .parquet, or a folder of Parquet files.",
            show_default=False,
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of the data to use, in the model's order, comma-separated.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 4096,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Take the first so many rows, all shares together.", show_default="all")
    ] = None,
    sensitivity_rows: Annotated[
        int, typer.Option(min=0, help="Take gradients on so many rows, which measured plans need.")
    ] = SENSITIVITY_ROWS,
    share: Annotated[
        str | None,
        typer.Option(help="Only this share of the data: 0/16 to 15/16, say; --merge adds them up.", show_default="all"),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add up the files of shares.")] = False,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the model runs; processes on cuda take one GPU each.")
    ] = "cpu",
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Calibrate a model on a data set, and write the statistics that plans are made from.

    Started by torchrun, its processes share the data, and the file is the same as that of one process. Without it,
    shares can be run one by one, anywhere; after a crash, those that have no file.

    Examples:
    torchrun --nproc-per-node 4 -m afm_fx calibrate shop.models:ctr --data log --out statistics.safetensors
    afm-fx calibrate shop.models:ctr --data log --share 3/16 --out share-3.safetensors
    afm-fx calibrate --merge share-*.safetensors --out statistics.safetensors
    """
    with reported_errors(debug):
        refuse_existing_file(out, force=force)
        if merge:
            _merge([Path(source) for source in sources], out, force=force)
            return
        if data is None or len(sources) != 1:
            raise UserError("name one model and its --data, or --merge and files of statistics")
        place = _own_device(device)
        with joined_group(place) as group:
            rank, world = rank_and_size(group)
            module, inputs = build_model(sources[0], checkpoint)
            program = capture(module.to(place), pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(place), inputs))
            statistics = calibrate_program(
                program,
                FileBatches(open_data(data), program, batch_size, names_of(columns)),
                max_rows=max_rows,
                sensitivity_rows=sensitivity_rows,
                share=None if share is None else _share(share),
                group=group,
            )
            if rank == 0:
                _write(statistics, out, f", by {world} processes" if world > 1 else "", force=force)


def _merge(paths: list[Path], out: Path, *, force: bool) -> None:
    """Adds up files, and warns where shares are missing."""
    total = functools.reduce(Statistics.__add__, (Statistics.load(path) for path in paths))
    _write(total, out, f", from {len(paths)} files", force=force)
    missing = missing_shares(total.shares)
    if missing:
        typer.echo(f"Missing: {', '.join(map(str, missing))}", err=True)


def _write(statistics: Statistics, out: Path, by: str, *, force: bool) -> None:
    statistics.save(out, force=force)
    typer.echo(
        f"{statistics.rows:,} rows in {statistics.batches:,} batches, {len(statistics.moments)} sites{by}\n"
        f"Written: {out}"
    )


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise UserError(f"a share is two numbers such as 0/16, not '{text}'")
    return int(number), int(of)


def _own_device(kind: str) -> torch.device:
    """This process's device: with "cuda" the GPU of its number on this machine."""
    if kind == "cpu":
        return torch.device("cpu")
    number, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= available:
        raise UserError(
            f"there is no device '{kind}' for process {number} of this machine: CUDA shows {available} GPUs to torch "
            f"{torch.__version__}; start one process per GPU, or use --device cpu"
        )
    return torch.device("cuda", number)
