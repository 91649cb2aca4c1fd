"""The command ``afm-fx sweep``: what every budget costs, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx.budget import Budget
from afm_fx.calibration import calibrate
from afm_fx.capture import capture
from afm_fx.command_errors import reported_errors
from afm_fx.command_options import CheckpointOption, DebugOption, ForceOption, ModelArgument, names_of
from afm_fx.compression import SENSITIVITY_ROWS
from afm_fx.data_files import open_data
from afm_fx.errors import CalibrationError, UserError
from afm_fx.file_batches import FileBatches
from afm_fx.held_out import HoldOut
from afm_fx.output_directory import refuse_existing_file, write_text
from afm_fx.planning import MEASURED_ROWS
from afm_fx.sweep import BUDGETS
from afm_fx.sweep import sweep as sweep_budgets
from afm_fx.user_model import build_model

DEFAULT_BUDGETS = ",".join(map(str, BUDGETS))


def sweep(
    model: ModelArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="Calibration rows, no labels needed: .npz, .npy or .parquet, as for compress. One row of five is kept "
            "back to measure on, 4,096 at most.",
            show_default=False,
        ),
    ],
    checkpoint: CheckpointOption = None,
    budgets: Annotated[
        str, typer.Option(help="Shares of the parameters that may remain, comma-separated.")
    ] = DEFAULT_BUDGETS,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Rows to measure AUC and LogLoss on; needs --labels.", show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Columns of labels in the evaluation rows, 0 or 1, one per number that the model predicts, "
            "comma-separated.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of the data to use, in the model's order, comma-separated.", show_default=False),
    ] = None,
    time_batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Also time every model, packed, at this batch size.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Calibration rows a batch.")] = 4096,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="Calibration rows at most.", show_default="all of them")
    ] = None,
    csv_out: Annotated[
        Path | None, typer.Option("--csv", help="Write the points here as well.", show_default=False)
    ] = None,
    plot_out: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw it: .png, .svg or .pdf (needs the extra plot).", show_default=False),
    ] = None,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure a model under many budgets: parameters, logit error, and AUC, LogLoss and latency where asked for.

    Example: afm-fx sweep shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --plot sweep.png
    """
    with reported_errors(debug):
        for path in (csv_out, plot_out):
            if path is not None:
                refuse_existing_file(path, force=force)
        if (evaluation is None) != (labels is None):
            raise UserError("--evaluation and --labels belong together: rows, and their columns of labels")
        shares, names = _shares(budgets), names_of(columns)
        program = capture(*build_model(model, checkpoint))
        labelled = None
        if evaluation is not None and labels is not None:
            file, tasks = open_data(evaluation), names_of(labels) or ()
            used = [name for name in file.names if name not in tasks] if names is None else names
            labelled = FileBatches(file, program, batch_size, used, tasks)
        rest = HoldOut(program, FileBatches(open_data(data), program, batch_size, names), MEASURED_ROWS)
        statistics = calibrate(program, rest, max_rows=max_rows, sensitivity_rows=SENSITIVITY_ROWS)
        if not rest.rows:
            raise CalibrationError(f"'{data}' has too few rows to keep any back to measure on")
        result = sweep_budgets(program, statistics, rest.rows, shares, evaluation=labelled, batch_size=time_batch_size)
        typer.echo(result.table())
        if csv_out is not None:
            write_text(csv_out, result.to_csv(), force=force)
        if plot_out is not None:
            result.plot(plot_out, force=force)


def _shares(text: str) -> list[float]:
    try:
        return [Budget(parameters=float(part)).share for part in text.split(",")]
    except ValueError:
        raise UserError(f"budgets are numbers with commas between, say 0.5,0.2,0.1; got '{text}'") from None
