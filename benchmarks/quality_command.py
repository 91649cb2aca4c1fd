"""The command line of ``benchmarks/quality.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.ctr_models import ModelConfig
from benchmarks.datasets import EncodingConfig
from benchmarks.exit_codes import exit_codes
from benchmarks.quality_comparison import BUDGETS
from benchmarks.quality_report import output_paths, shown_command
from benchmarks.quality_run import QualityRun, parse_widths, run_quality
from benchmarks.training import TrainingConfig

RESULTS = Path(__file__).resolve().parent / "results"

app = typer.Typer(add_completion=False)


@app.command()
def quality(
    *,
    dataset: Annotated[str, typer.Option(help="movielens-1m, movielens-100k, criteo or avazu.")],
    path: Annotated[Path, typer.Option(help="Folder with the dataset's raw published files.")],
    model: Annotated[str, typer.Option(help="A single-task model of deepctr-torch: DeepFM, DCN, AutoInt, ...")],
    rows: Annotated[int | None, typer.Option(help="Read only the first so many rows.")] = None,
    min_count: Annotated[
        int, typer.Option(help="Categories rarer than this in the training rows share one table row.")
    ] = 1,
    hash_buckets: Annotated[
        int | None, typer.Option(help="Hash each field into so many table rows, instead of a vocabulary.")
    ] = None,
    embedding_dim: Annotated[int, typer.Option(help="Width of the embedding tables.")] = 16,
    l2_embedding: Annotated[float, typer.Option(help="Penalty on the squared norm of the tables.")] = 1e-5,
    l2_linear: Annotated[float, typer.Option(help="Penalty on the squared norm of the linear term.")] = 1e-5,
    hidden_units: Annotated[str, typer.Option(help="Widths of the MLP, joined by '-'.")] = "400-400-400",
    dropout: Annotated[float, typer.Option(help="Dropout in the MLP.")] = 0.3,
    learning_rate: Annotated[float, typer.Option(help="Step size of Adam.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(help="Rows a training step.")] = 4096,
    max_epochs: Annotated[int, typer.Option(help="Upper limit of training epochs.")] = 12,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation AUC before stopping.")] = 2,
    budget: Annotated[
        list[float] | None, typer.Option(help="Share of the parameters to keep; may be given several times.")
    ] = None,
    calibration_rows: Annotated[int, typer.Option(help="At most so many training rows calibrate.")] = 200_000,
    random_plans: Annotated[
        int, typer.Option(help="Predict and measure the logit error of so many plans with ranks at random.")
    ] = 0,
    latency_batch_size: Annotated[
        list[int] | None,
        typer.Option(help="Also time the original and measured plans at this batch size; may be given several times."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of split, initialization, training and bootstrap.")] = 2024,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; its own choice where left out.")] = None,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Keep the trained model here and reuse it.")] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Where the markdown and JSON results go.", show_default="benchmarks/results")
    ] = RESULTS,
    tag: Annotated[str | None, typer.Option(help="Ends the result files' names, to tell runs apart.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
) -> None:
    """Train a model on a public dataset, compress it at several budgets by AFM and by weight-SVD, and compare.

    Prints AUC and LogLoss on held-out rows with paired bootstrap intervals, and writes them as markdown and JSON.
    Budgets that cannot be reached are listed with the reason. Exit code 2: a mistake in the call or the data.
    """
    with exit_codes():
        if threads is not None:
            torch.set_num_threads(threads)
        run = QualityRun(
            dataset_name=dataset,
            path=path,
            model_name=model,
            max_rows=rows,
            encoding=EncodingConfig(seed=seed, min_count=min_count, hash_buckets=hash_buckets),
            model=ModelConfig(embedding_dim, parse_widths(hidden_units), l2_embedding, l2_linear, dropout, seed),
            training=TrainingConfig(max_epochs, patience, batch_size, learning_rate, seed),
            budgets=budget or BUDGETS,
            calibration_rows=calibration_rows,
            resamples=resamples,
            checkpoint_dir=checkpoint_dir,
            random_plans=random_plans,
            latency_batch_sizes=latency_batch_size or (),
        )
        markdown, json = output_paths(output_dir, dataset, model, tag=tag, force=force)
        report = run_quality(run, shown_command(sys.argv[1:]))
    typer.echo(report.table())
    output_dir.mkdir(parents=True, exist_ok=True)
    markdown.write_text(report.markdown())
    json.write_text(report.to_json())
