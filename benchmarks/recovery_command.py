"""The command line of ``benchmarks/recovery.py``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from afm_fx.io import render_table
from benchmarks.ctr_models import ModelConfig, check_model_name
from benchmarks.datasets import CtrDataset, EncodingConfig
from benchmarks.exit_codes import exit_codes
from benchmarks.quality_report import Environment, current_environment, shown_command
from benchmarks.recovery_experiment import Line, Schedule, as_json, experiment
from benchmarks.result_files import RESULTS, markdown_table, result_files
from benchmarks.trained_model import trained_model
from benchmarks.training import TrainingConfig

BUDGETS = (0.2, 0.1, 0.0625)
COLUMNS = ("model", "parameters", "share", "AUC", "LogLoss", "AUC - original", "logit error", "trained", "seconds")
WIDTH = 160
"""Columns of the printed table: an interval stays on one line."""

app = typer.Typer(add_completion=False)


@app.command()
def recovery(
    *,
    dataset: Annotated[str, typer.Option(help="movielens-1m, movielens-100k, criteo or avazu.")],
    path: Annotated[Path, typer.Option(help="Folder with the dataset's raw published files.")],
    model: Annotated[str, typer.Option(help="A single-task model of deepctr-torch: DeepFM, DCN, AutoInt, ...")],
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Share of the parameters to keep; several times. [default: 0.2 0.1 0.0625]"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes with labels, for the control too.")] = Schedule.epochs,
    epochs_without_labels: Annotated[int, typer.Option(help="Passes without labels.")] = Schedule.epochs_without_labels,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam, at the start; recover's own if left out.")
    ] = None,
    label_weight: Annotated[float | None, typer.Option(help="The labels' share of the loss; likewise.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = Schedule.batch_size,
    max_epochs: Annotated[int, typer.Option(help="Upper limit of the original's training epochs.")] = 12,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation AUC before that stops.")] = 2,
    rows: Annotated[int | None, typer.Option(help="Read only the first so many rows.")] = None,
    calibration_rows: Annotated[int, typer.Option(help="At most so many training rows calibrate.")] = 200_000,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of split, initialization, training, recovery and bootstrap.")] = 2024,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; its own choice where left out.")] = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Keep trained and recovered models here and reuse them.")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    tag: Annotated[str | None, typer.Option(help="Ends the result files' names, to tell runs apart.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Train a model on a public dataset, compress it, recover it without labels and with, and compare.

    The last line is the control: the original, tuned on the labels on the same schedule. Exit code 2: a mistake in
    the call or the data.
    """
    with exit_codes():
        if threads is not None:
            torch.set_num_threads(threads)
        check_model_name(model)
        files = result_files(output_dir, "-".join(["recovery", dataset, model, *([tag] if tag else [])]), force=force)
        trained = trained_model(
            dataset, path, model, rows=rows,
            encoding=EncodingConfig(seed=seed, min_count=1, hash_buckets=None),
            config=ModelConfig(seed=seed, dropout=0.3),
            training=TrainingConfig(max_epochs, patience, seed=seed),
            folder=checkpoint_dir,
        )  # fmt: skip
        schedule = Schedule(epochs, epochs_without_labels, learning_rate, label_weight, batch_size, seed)
        lines = experiment(
            trained.model,
            trained.data,
            budget or BUDGETS,
            schedule,
            calibration_rows=calibration_rows,
            resamples=resamples,
            folder=checkpoint_dir,
        )
    training = trained.training
    environment = current_environment(shown_command(sys.argv[1:], script="benchmarks/recovery.py"))
    head = f"{model} on {dataset}, trained for {len(training.epochs)} epochs, the best of them {training.best}"
    typer.echo(render_table(head, COLUMNS, cells(lines), width=WIDTH))
    content = {"environment": asdict(environment), "schedule": asdict(schedule), "training": asdict(training)}
    files.write(markdown(head, environment, trained.data, lines), {**content, "lines": as_json(lines)})


def cells(lines: list[Line]) -> list[tuple[str, ...]]:
    """One row of text per model."""
    whole = lines[0].parameters
    return [
        (
            line.name,
            f"{line.parameters:,}",
            f"{line.parameters / whole:.1%}",
            f"{line.auc:.4f}",
            f"{line.log_loss:.4f}",
            str(line.to_original or ""),
            "" if line.logit_rmse is None else f"{line.logit_rmse:.3f}",
            "" if line.recovery is None else f"{line.recovery.parameters_trained:,}",
            "" if line.recovery is None else f"{line.recovery.seconds:.0f}",
        )
        for line in lines
    ]


def markdown(head: str, environment: Environment, data: CtrDataset, lines: list[Line]) -> str:
    """The page that is committed."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    what = (
        f"{len(data.train):,} rows to train and recover on, {len(data.validation):,} to hold out, AUC and LogLoss on "
        f"{len(data.test):,} test rows; in brackets the 95 % interval of the paired difference. Logit error is that on "
        "the held-out rows. The last line is the control: the original, tuned on the labels on the same schedule. "
        f"{environment.threads} thread(s), {environment.processor}. {versions}."
    )
    schedules = {_schedule(line): None for line in lines if line.recovery is not None}
    parts = [
        f"# {head}",
        f"    {environment.command}",
        what,
        "\n".join(schedules),
        markdown_table(COLUMNS, cells(lines)),
    ]
    return "\n\n".join(parts) + "\n"


def _schedule(line: Line) -> str:
    settings: Any = line.recovery and line.recovery.settings
    weight = "without labels" if settings.label_weight is None else f"labels {settings.label_weight:.0%} of the loss"
    return f"- {weight}: {settings.epochs} epochs, Adam from {settings.learning_rate:g}."
