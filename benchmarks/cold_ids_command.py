"""The command line of ``benchmarks/cold_ids.py``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from afm_fx.io import render_table
from benchmarks.cold_ids_experiment import ColdLine, as_json, cold_ids_experiment
from benchmarks.ctr_models import ModelConfig, check_model_name
from benchmarks.datasets import EncodingConfig
from benchmarks.exit_codes import exit_codes
from benchmarks.quality_report import Environment, current_environment, shown_command
from benchmarks.result_files import RESULTS, markdown_table, result_files
from benchmarks.trained_model import trained_model
from benchmarks.training import TrainingConfig

BUDGETS = (0.2, 0.1, 0.0625)
COLUMNS = ("budget", "test rows", "number", "calibrated on", "original AUC", "AUC", "AUC - original")
WIDTH = 140

app = typer.Typer(add_completion=False)


@app.command()
def cold_ids(
    *,
    dataset: Annotated[str, typer.Option(help="movielens-1m, movielens-100k, criteo or avazu.")],
    path: Annotated[Path, typer.Option(help="Folder with the dataset's raw published files.")],
    model: Annotated[str, typer.Option(help="A single-task model of deepctr-torch: DeepFM, DCN, AutoInt, ...")],
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Share of the parameters to keep; several times. [default: 0.2 0.1 0.0625]"),
    ] = None,
    fields: Annotated[int, typer.Option(help="Leave ids out of so many of the largest vocabularies.")] = 2,
    share: Annotated[float, typer.Option(help="Share of their ids that calibration does not see.")] = 0.3,
    max_epochs: Annotated[int, typer.Option(help="Upper limit of the original's training epochs.")] = 12,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation AUC before that stops.")] = 2,
    rows: Annotated[int | None, typer.Option(help="Read only the first so many rows.")] = None,
    calibration_rows: Annotated[int, typer.Option(help="At most so many training rows calibrate.")] = 200_000,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of split, training, ids left out and bootstrap.")] = 2024,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; its own choice where left out.")] = None,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Keep the trained model here and reuse it.")] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    tag: Annotated[str | None, typer.Option(help="Ends the result files' names, to tell runs apart.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Compress a trained model without showing calibration some of its ids, and measure it on the rows that hold them.

    Exit code 2: a mistake in the call or the data.
    """
    with exit_codes():
        if threads is not None:
            torch.set_num_threads(threads)
        check_model_name(model)
        files = result_files(output_dir, "-".join(["cold-ids", dataset, model, *([tag] if tag else [])]), force=force)
        trained = trained_model(
            dataset, path, model, rows=rows,
            encoding=EncodingConfig(seed=seed, min_count=1, hash_buckets=None),
            config=ModelConfig(seed=seed, dropout=0.3),
            training=TrainingConfig(max_epochs, patience, seed=seed),
            folder=checkpoint_dir,
        )  # fmt: skip
        lines = cold_ids_experiment(
            trained.model,
            trained.data,
            budget or BUDGETS,
            fields=fields,
            share=share,
            calibration_rows=calibration_rows,
            resamples=resamples,
            seed=seed,
        )
    environment = current_environment(shown_command(sys.argv[1:], script="benchmarks/cold_ids.py"))
    head = f"Cold ids: {model} on {dataset}, {share:.0%} of the ids of {fields} fields unseen in calibration"
    typer.echo(render_table(head, COLUMNS, cells(lines), width=WIDTH))
    content = {"environment": asdict(environment), "training": asdict(trained.training), "lines": as_json(lines)}
    files.write(markdown(head, environment, lines), content)


def cells(lines: list[ColdLine]) -> list[tuple[str, ...]]:
    """One row of text per line."""
    return [
        (
            f"{line.budget:g}",
            line.rows,
            f"{line.count:,}",
            line.calibrated_on,
            f"{line.original_auc:.4f}",
            f"{line.auc:.4f}",
            str(line.to_original),
        )
        for line in lines
    ]


def markdown(head: str, environment: Environment, lines: list[ColdLine]) -> str:
    """The page that is committed."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    what = (
        "Cold test rows hold an id that calibration did not see (the trained model knows it); in brackets the 95 % "
        "interval of the paired difference. The plan from all ids is the control. "
        f"{environment.threads} thread(s), {environment.processor}. {versions}."
    )
    return "\n\n".join([f"# {head}", f"    {environment.command}", what, markdown_table(COLUMNS, cells(lines))]) + "\n"
