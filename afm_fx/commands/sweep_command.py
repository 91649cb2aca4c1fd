"""The command ``afm-fx sweep``: what every budget costs, from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from afm_fx.calibration import calibrate
from afm_fx.commands.command_options import (
    BatchRowsOption,
    CheckpointOption,
    ColumnsOption,
    ForceOption,
    MaxRowsOption,
    ModelArgument,
)
from afm_fx.data import FileBatches, HoldOut, open_data
from afm_fx.errors import CalibrationError, UserError
from afm_fx.io import refuse_existing_file, write_text
from afm_fx.planning import BUDGETS, MEASURED_ROWS, SENSITIVITY_ROWS, Budget, sweep as sweep_budgets
from afm_fx.program import build_model, capture


@dataclass(frozen=True)
class SweepConfig:
    """What ``afm-fx sweep`` is asked for; each field's help text says what it means.

    Raises:
        UserError: a budget is no share, or options do not belong together.
    """

    model: ModelArgument
    data: Annotated[
        Path,
        Option(
            help="Calibration rows, no labels needed: .npz, .npy or .parquet, as for compress. One row of five is kept "
            "back to measure on, 4,096 at most."
        ),
    ]
    checkpoint: CheckpointOption = None
    budgets: Annotated[tuple[float, ...], Option(help="Shares of the parameters that may remain, comma-separated.")] = (
        BUDGETS
    )
    evaluation: Annotated[
        Path | None, Option(help="Rows to measure AUC and LogLoss on; needs --labels.", show_default=False)
    ] = None
    labels: Annotated[
        tuple[str, ...],
        Option(
            metavar="COLUMNS",
            help="Columns of labels in the evaluation rows, 0 or 1, one per output, comma-separated.",
            show_default=False,
        ),
    ] = ()
    columns: ColumnsOption = ()
    batch_size: BatchRowsOption = 4096
    max_rows: MaxRowsOption = None
    csv: Annotated[Path | None, Option(help="Write the points here as well.", show_default=False)] = None
    plot: Annotated[
        Path | None, Option(help="Draw it: .png, .svg or .pdf (needs the extra plot).", show_default=False)
    ] = None
    force: ForceOption = False

    def __post_init__(self) -> None:
        for share in self.budgets:
            Budget(parameters=share)  # refuses what is no share
        if (self.evaluation is None) != (not self.labels):
            raise UserError("--evaluation and --labels belong together: rows, and their columns of labels")


def sweep(config: SweepConfig) -> None:
    """Measure a model under many budgets: parameters, logit error, and AUC and LogLoss where asked for.

    Example: afm-fx sweep shop.models:ctr --checkpoint ctr.pt --data clicks.parquet --plot sweep.png
    """
    for path in (config.csv, config.plot):
        if path is not None:
            refuse_existing_file(path, force=config.force)
    program = capture(*build_model(config.model, config.checkpoint))
    columns = config.columns or None
    labelled = None
    if config.evaluation is not None:
        labelled = FileBatches(open_data(config.evaluation), program, config.batch_size, columns, config.labels)
    batches = FileBatches(open_data(config.data), program, config.batch_size, columns)
    held_out = HoldOut(program, batches, MEASURED_ROWS)
    statistics = calibrate(program, held_out, max_rows=config.max_rows, sensitivity_rows=SENSITIVITY_ROWS)
    if not held_out.rows:
        raise CalibrationError(f"'{config.data}' has too few rows to keep any back to measure on")
    result = sweep_budgets(program, statistics, held_out.rows, config.budgets, evaluation=labelled)
    typer.echo(result.table())
    if config.csv is not None:
        write_text(config.csv, result.to_csv(), force=config.force)
    if config.plot is not None:
        result.plot(config.plot, force=config.force)
