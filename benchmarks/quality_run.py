"""One quality run from the raw files to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afm_fx.errors import UserError
from benchmarks.ctr_models import ModelConfig, check_model_name
from benchmarks.datasets import EncodingConfig
from benchmarks.quality_comparison import compare, default_settings
from benchmarks.quality_report import QualityReport, current_environment
from benchmarks.trained_model import trained_model
from benchmarks.training import TrainingConfig


@dataclass(frozen=True)
class QualityRun:
    """What is trained, how, and how it is compressed and measured.

    Attributes:
        dataset_name: a key of :data:`benchmarks.datasets.DATASETS`.
        path: folder of its raw files.
        model_name: one of :data:`benchmarks.ctr_models.MODELS`.
        max_rows: read only the first so many rows.
        encoding: split and vocabularies.
        model: hyperparameters.
        training: of the original.
        budgets: shares of the parameters to keep.
        calibration_rows: at most how many training rows calibrate.
        resamples: of the bootstrap.
        random_plans: predict and measure so many plans with ranks at random.
        checkpoint_dir: keeps the trained original, and reuses one of the same run.
        latency_batch_sizes: time the original and what measured plans make of it at these batch sizes.
    """

    dataset_name: str
    path: Path
    model_name: str
    max_rows: int | None
    encoding: EncodingConfig
    model: ModelConfig
    training: TrainingConfig
    budgets: Sequence[float]
    calibration_rows: int
    resamples: int
    checkpoint_dir: Path | None
    random_plans: int = 0
    latency_batch_sizes: Sequence[int] = ()


def parse_widths(text: str) -> tuple[int, ...]:
    """Layer widths written like ``400-400-400``.

    Raises:
        UserError: not whole positive numbers.
    """
    widths = text.split("-")
    if not all(width.isdecimal() and int(width) > 0 for width in widths):
        raise UserError(f"'{text}' should be widths joined by '-', such as 400-400-400")
    return tuple(int(width) for width in widths)


def run_quality(run: QualityRun, command: str) -> QualityReport:
    """Reads, trains (or loads the trained model), compresses and measures.

    Args:
        command: shown in the report, to repeat the run.

    Raises:
        UserError: an unknown dataset or model, or data that cannot be read, split or trained on.
    """
    if run.calibration_rows < 2 or not run.budgets:
        raise UserError("give at least 2 calibration_rows and one budget")
    check_model_name(run.model_name)
    settings = default_settings(run.budgets)
    trained = trained_model(
        run.dataset_name, run.path, run.model_name, rows=run.max_rows,
        encoding=run.encoding, config=run.model, training=run.training, folder=run.checkpoint_dir,
    )  # fmt: skip
    comparison = compare(
        trained.model,
        trained.data,
        settings,
        calibration_rows=run.calibration_rows,
        resamples=run.resamples,
        seed=run.training.seed,
        random_plans=run.random_plans,
        latency_batch_sizes=run.latency_batch_sizes,
    )
    return QualityReport(
        dataset_name=run.dataset_name,
        model_name=run.model_name,
        dataset=trained.data,
        encoding=run.encoding,
        model_config=run.model,
        training_config=run.training,
        training=trained.training,
        comparison=comparison,
        resamples=run.resamples,
        environment=current_environment(command),
    )
