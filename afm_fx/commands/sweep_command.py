"""The command ``afm-fx sweep``: what every budget costs, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

import afm_fx
from afm_fx.commands.command_options import (
    COLUMNS,
    DATA,
    LABELS,
    OUTPUT,
    CheckpointOption,
    EvaluationOption,
    ForceOption,
    MaxRowsOption,
    ModelArgument,
    existing,
    names_of,
    numbers_of,
)
from afm_fx.errors import CalibrationError, UserError
from afm_fx.io import refuse_existing_file, write_text

BATCH_ROWS = 4096


def sweep(
    model: ModelArgument,
    data: Annotated[
        Path,
        Option(
            help="Calibration rows, no labels needed, as for compress. One row of five is kept back to measure on, "
            "4,096 at most.",
            show_default=False,
            callback=existing("data file"),
            rich_help_panel=DATA,
        ),
    ],
    checkpoint: CheckpointOption = None,
    budgets: Annotated[
        str | None,
        Option(
            metavar="SHARES",
            help="Shares of the parameters that may remain, comma-separated.",
            show_default="seven from 0.5 to 0.02",
        ),
    ] = None,
    columns: Annotated[str | None, COLUMNS] = None,
    max_rows: MaxRowsOption = None,
    evaluation: EvaluationOption = None,
    labels: Annotated[str | None, LABELS] = None,
    csv: Annotated[
        Path | None, Option(help="Write the points here as well.", show_default=False, rich_help_panel=OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None,
        Option(help="Draw it: .png, .svg or .pdf (needs the extra plot).", show_default=False, rich_help_panel=OUTPUT),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Measure a model under many budgets: parameters, logit error, and AUC and LogLoss where asked for.

    Example: afm-fx sweep shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --plot sweep.png
    """
    shares = None if budgets is None else numbers_of(budgets, "budgets", float)
    for share in shares or ():
        afm_fx.Budget(parameters=share)  # refuses what is no share
    if (evaluation is None) != (labels is None):
        raise UserError("--evaluation and --labels belong together: rows, and their columns of labels")
    for path in (csv, plot):
        if path is not None:
            refuse_existing_file(path, force=force)
    program = afm_fx.capture(*afm_fx.program.build_model(model, checkpoint))
    labelled = None
    if evaluation is not None:
        rows = afm_fx.data.open_data(evaluation)
        labelled = afm_fx.data.FileBatches(rows, program, BATCH_ROWS, names_of(columns), names_of(labels) or ())
    batches = afm_fx.data.FileBatches(afm_fx.data.open_data(data), program, BATCH_ROWS, names_of(columns))
    held_out = afm_fx.data.HoldOut(program, batches, afm_fx.planning.MEASURED_ROWS)
    statistics = afm_fx.calibrate(
        program, held_out, max_rows=max_rows, sensitivity_rows=afm_fx.planning.SENSITIVITY_ROWS
    )
    if not held_out.rows:
        raise CalibrationError(f"'{data}' has too few rows to keep any back to measure on")
    result = afm_fx.sweep(program, statistics, held_out.rows, shares or afm_fx.planning.BUDGETS, evaluation=labelled)
    typer.echo(result.table())
    if csv is not None:
        write_text(csv, result.to_csv(), force=force)
    if plot is not None:
        result.plot(plot, force=force)
