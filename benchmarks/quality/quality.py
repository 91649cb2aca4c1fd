"""AUC and LogLoss of a model trained on public data, compressed at several budgets in several ways."""

from __future__ import annotations

from typing import Annotated

import typer

from afm_fx.errors import UserError
from benchmarks.common import options
from benchmarks.common.ctr_models import ModelConfig
from benchmarks.common.results import RESULTS, Part, Table, conditions, result_files
from benchmarks.datasets import EncodingConfig
from benchmarks.quality.comparison import BUDGETS, MEASURED, ORIGINAL, Comparison, Variant, compare, default_settings
from benchmarks.quality.trained_model import TrainedModel, trained_model
from benchmarks.quality.training import TrainingConfig

METRICS = ("parameters", "share", "AUC", "LogLoss")
COLUMNS = ("setting", "method", *METRICS, "logit error", "AUC - original", "AUC - better peer")


def quality(
    *,
    dataset: options.Dataset,
    path: options.DataPath,
    model: options.ModelName,
    budget: options.Budgets = BUDGETS,
    rows: options.DataRows = None,
    min_count: Annotated[
        int, typer.Option(help="Categories rarer than this in the training rows share one table row.")
    ] = 1,
    hash_buckets: Annotated[
        int | None,
        typer.Option(help="Hash each field into so many table rows.", show_default="a vocabulary"),
    ] = None,
    embedding_dim: Annotated[int, typer.Option(help="Width of the embedding tables.")] = 16,
    hidden_units: Annotated[str, typer.Option(help="Widths of the MLP, joined by '-'.")] = "400-400-400",
    learning_rate: Annotated[float, typer.Option(help="Step size of Adam.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(help="Rows a training step.")] = 4096,
    max_epochs: options.MaxEpochs = 12,
    random_plans: Annotated[
        int, typer.Option(help="Predict and measure the logit error of so many plans with ranks at random.")
    ] = 0,
    latency_batch_size: Annotated[
        list[int] | None,
        typer.Option(help="Also time the original and measured plans at this batch size; may be given several times."),
    ] = None,
    resamples: options.Resamples = 1000,
    seed: options.Seed = 2024,
    threads: options.Threads = None,
    checkpoint_dir: options.CheckpointDir = None,
    output_dir: options.OutputDir = RESULTS,
    tag: options.Tag = None,
    force: options.Force = False,
) -> None:
    """Train a model on public data, compress it at several budgets, and compare AUC and LogLoss with those of peers.

    Peers are AFM and SVD of the weights. AUC is that of held-out rows, with paired bootstrap intervals. Budgets that
    cannot be reached are listed with the reason.
    """
    files = result_files(output_dir, "quality", dataset, model, tag, force=force)
    trained = trained_model(
        dataset,
        path,
        model,
        rows=rows,
        encoding=EncodingConfig(seed=seed, min_count=min_count, hash_buckets=hash_buckets),
        config=ModelConfig(embedding_dim, parse_widths(hidden_units), seed=seed),
        training=TrainingConfig(max_epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed),
        folder=checkpoint_dir,
        threads=threads,
    )
    comparison = compare(
        trained.model,
        trained.data,
        default_settings(budget),
        resamples=resamples,
        seed=seed,
        random_plans=random_plans,
        latency_batch_sizes=latency_batch_size or (),
    )
    content = {**trained.content(), "resamples": resamples, "comparison": comparison}
    files.write(trained.title, parts(trained, comparison, resamples), content)


def parse_widths(text: str) -> tuple[int, ...]:
    """Layer widths written like ``400-400-400``.

    Raises:
        UserError: not whole positive numbers.
    """
    widths = text.split("-")
    if not all(width.isdecimal() and int(width) > 0 for width in widths):
        raise UserError(f"'{text}' should be widths joined by '-', such as 400-400-400")
    return tuple(int(width) for width in widths)


def parts(trained: TrainedModel, comparison: Comparison, resamples: int) -> list[Part]:
    """The page."""
    seconds = [each.seconds for each in comparison.variants if each.method == MEASURED]
    what = (
        f"AUC and LogLoss on the {len(trained.data.test):,} test rows; in brackets the 95 % percentile interval of "
        f"the paired difference over {resamples} bootstrap resamples. SVD is that of the weights; the peer is "
        f"the better of AFM and SVD, at uniform ranks where the setting is a budget. Logit errors are root mean "
        f"squares on held-out training rows, in brackets as predicted. Projection only: nothing is tuned after it. "
        f"Calibrated on {comparison.calibration_rows:,} training rows in {comparison.calibration_seconds:.0f} s; "
        f"measured plans took {min(seconds, default=0):.0f} to {max(seconds, default=0):.0f} s, and all rows below "
        f"{comparison.seconds:.0f} s."
    )
    if comparison.rank_correlation is not None:
        what += (
            f" Over {comparison.random_plans} plans with ranks at random, predicted and measured logit errors have "
            f"a rank correlation (Spearman's) of {comparison.rank_correlation:.3f}."
        )
    page: list[Part] = [trained.description(), what, Table(COLUMNS, cells(comparison), left=2)]
    refusals = [f"- {each.setting}, {each.method}: not reached. {each.reason}" for each in comparison.refusals]
    page += ["\n".join(refusals)] if refusals else []
    if comparison.timing is not None:
        timing = comparison.timing
        page += [
            "Latency in ONNX Runtime, the low-rank programs packed:",
            Table(timing.columns, timing.rows(), left=3),
            conditions(timing),
        ]
    return page


def cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """The original and every variant, under ``COLUMNS``."""
    whole = f"{comparison.parameters:,}", "100.0%", f"{comparison.auc:.4f}", f"{comparison.log_loss:.4f}"
    return [
        (ORIGINAL, "", *whole, *("" for _ in COLUMNS[2 + len(METRICS) :])),
        *(
            (
                variant.setting,
                variant.method,
                f"{variant.parameters:,}",
                f"{variant.share:.1%}",
                f"{variant.auc:.4f}",
                f"{variant.log_loss:.4f}",
                _logit_error(variant),
                str(variant.to_original),
                str(variant.to_peer or ""),
            )
            for variant in comparison.variants
        ),
    ]


def _logit_error(variant: Variant) -> str:
    if variant.logit_error is None or variant.predicted_logit_error is None:
        return ""
    return f"{variant.logit_error:.4f} ({variant.predicted_logit_error:.4f})"
