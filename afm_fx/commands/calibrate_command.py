"""The command ``afm-fx calibrate``: statistics of a data set, or of a share of it, and the sum of shares."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

import afm_fx
from afm_fx.commands.command_options import (
    COLUMNS,
    DATA,
    OUTPUT,
    BatchRowsOption,
    CheckpointOption,
    ForceOption,
    MaxRowsOption,
    existing,
    names_of,
)
from afm_fx.errors import UserError
from afm_fx.io import refuse_existing_file

SHARES = "Shares and devices"


def calibrate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="package.module:factory; with --merge files of statistics.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.", show_default=False, rich_help_panel=OUTPUT)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Calibration rows, no labels needed: .npz, .npy or .parquet, or a folder of Parquet files.",
            show_default=False,
            callback=existing("data file"),
            rich_help_panel=DATA,
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    columns: Annotated[str | None, COLUMNS] = None,
    batch_size: BatchRowsOption = 4096,
    max_rows: MaxRowsOption = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only this share of the data: 0/16 to 15/16, say; --merge adds them up.",
            show_default="all",
            rich_help_panel=SHARES,
        ),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add up the files of shares.", rich_help_panel=SHARES)] = False,
    device: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(help="Where the model runs; processes on cuda take one GPU each.", rich_help_panel=SHARES),
    ] = "cpu",
    force: ForceOption = False,
) -> None:
    """Calibrate a model on a data set, and write the statistics that plans are made from.

    Started by torchrun, its processes share the data, and the file is that of one process.
    Without it, shares can be run one by one, anywhere; after a crash, those that have no file.

    Examples:
    torchrun --nproc-per-node 4 -m afm_fx calibrate shop.models:ctr --data log --out statistics.safetensors
    afm-fx calibrate shop.models:ctr --data log --share 3/16 --out share-3.safetensors
    afm-fx calibrate --merge share-*.safetensors --out statistics.safetensors
    """
    refuse_existing_file(out, force=force)
    if merge:
        _merge(existing("file")([Path(source) for source in sources]), out, force=force)
        return
    if data is None or len(sources) != 1:
        raise UserError("name one model and its --data, or --merge and files of statistics")
    of = None if share is None else _share(share)
    place = afm_fx.io.own_device(device)
    with afm_fx.io.joined_group(place) as group:
        rank, world = afm_fx.io.rank_and_size(group)
        program = afm_fx.capture(*afm_fx.program.build_model(sources[0], checkpoint, place))
        statistics = afm_fx.calibrate(
            program,
            afm_fx.data.FileBatches(afm_fx.data.open_data(data), program, batch_size, names_of(columns)),
            max_rows=max_rows,
            sensitivity_rows=afm_fx.planning.SENSITIVITY_ROWS,
            share=of,
            group=group,
        )
        if rank == 0:
            _write(statistics, out, f", by {world} processes" if world > 1 else "", force=force)


def _merge(paths: list[Path], out: Path, *, force: bool) -> None:
    """Adds up files, and warns where shares are missing."""
    total = functools.reduce(afm_fx.Statistics.__add__, map(afm_fx.Statistics.load, paths))
    _write(total, out, f", from {len(paths)} files", force=force)
    missing = afm_fx.calibration.missing_shares(total.shares)
    if missing:
        typer.echo(f"Missing: {', '.join(map(str, missing))}", err=True)


def _write(statistics: afm_fx.Statistics, out: Path, by: str, *, force: bool) -> None:
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
