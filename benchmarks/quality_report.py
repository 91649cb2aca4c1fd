"""The result of a quality run as text, markdown and JSON."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afm_fx.errors import OutputExistsError
from afm_fx.io import render_table
from benchmarks.ctr_models import ModelConfig
from benchmarks.datasets import CtrDataset, EncodingConfig
from benchmarks.quality_comparison import MEASURED, ORIGINAL, Comparison, Variant
from benchmarks.result_files import markdown_table
from benchmarks.training import Training, TrainingConfig

PACKAGES = ("torch", "deepctr-torch", "numpy", "pyarrow")
DATA_OPTION = "--path"
LOCAL_OPTIONS = (DATA_OPTION, "--checkpoint-dir", "--output-dir")
LOCAL_FLAGS = ("--force",)
METRICS = ("parameters", "share", "AUC", "LogLoss")
WIDTH = 160
"""Columns of the printed table: an interval stays on one line."""

COLUMNS = ("setting", "method", *METRICS, "logit error", "AUC - original", "AUC - better peer")


@dataclass(frozen=True)
class Environment:
    """What the numbers were measured with.

    Attributes:
        command: to repeat the run, with a placeholder for the data folder.
        processor: machine architecture.
        threads: of torch.
        versions: of Python and the packages.
    """

    command: str
    processor: str
    threads: int
    versions: dict[str, str]


def current_environment(command: str) -> Environment:
    """Versions and threads of this process."""
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
    return Environment(command, platform.machine(), torch.get_num_threads(), versions)


@dataclass(frozen=True)
class QualityReport:
    """One run of ``benchmarks/quality.py``: what was trained how, and what compression did to it."""

    dataset_name: str
    model_name: str
    dataset: CtrDataset
    encoding: EncodingConfig
    model_config: ModelConfig
    training_config: TrainingConfig
    training: Training
    comparison: Comparison
    resamples: int
    environment: Environment

    def table(self) -> str:
        """The result as text."""
        lines = [self._headline(), render_table("", COLUMNS, self._cells(), left=2, width=WIDTH)]
        lines += [f"{refusal.setting}, {refusal.method}: {refusal.reason}" for refusal in self.comparison.refusals]
        lines += [] if self.comparison.timing is None else [self.comparison.timing.table()]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The result as a markdown page."""
        rows = ["| " + " | ".join(cells) + " |" for cells in self._cells()]
        versions = ", ".join(f"{name} {version}" for name, version in self.environment.versions.items())
        comparison, training = self.comparison, self.training
        how = (
            f"Trained by Adam for {len(training.epochs)} epochs, the best validation AUC in epoch {training.best}; "
            f"{training.seconds:.0f} s of training, {comparison.seconds:.0f} s for calibration and all rows below; "
            f"{self.environment.threads} thread(s), {self.environment.processor}. Seed {self.training_config.seed}. "
            f"{versions}."
        )
        what = (
            f"AUC and LogLoss on the {len(self.dataset.test):,} test rows; in brackets the 95 % percentile interval of "
            f"the paired difference over {self.resamples} bootstrap resamples. SVD is that of the weights; the peer is "
            f"the better of AFM and SVD, at uniform ranks where the setting is a budget. Logit errors are root mean "
            f"squares on held-out training rows, in brackets as predicted. Projection only: nothing is tuned after it. "
            f"Calibrated on {comparison.calibration_rows:,} training rows in {comparison.calibration_seconds:.0f} s; "
            f"measured plans took {self._planning_seconds()}."
        )
        if comparison.rank_correlation is not None:
            what += (
                f" Over {comparison.random_plans} plans with ranks at random, predicted and measured logit errors have "
                f"a rank correlation (Spearman's) of {comparison.rank_correlation:.3f}."
            )
        rows_read = len(self.dataset.train) + len(self.dataset.validation) + len(self.dataset.test)
        head = [
            f"# {self.model_name} on {self.dataset_name}, {rows_read:,} rows",
            f"    {self.environment.command}",
            self._headline(),
            how,
            what,
        ]
        table = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2), *rows]
        refusals = [
            f"- {refusal.setting}, {refusal.method}: not reached. {refusal.reason}"
            for refusal in self.comparison.refusals
        ]
        parts = ["\n\n".join(head), "\n".join(table), *(["\n".join(refusals)] if refusals else [])]
        if comparison.timing is not None:
            timing = comparison.timing
            parts += [
                "Latency in ONNX Runtime, the low-rank programs packed:",
                markdown_table(timing.columns, timing.rows(), left=3),
                timing.conditions().replace("\n", "  \n"),
            ]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """All settings and numbers of the run."""
        dataset = self.dataset
        content = {
            "dataset": {
                "name": self.dataset_name,
                "train_rows": len(dataset.train),
                "validation_rows": len(dataset.validation),
                "test_rows": len(dataset.test),
                "sparse_fields": {field.name: field.vocabulary_size for field in dataset.sparse},
                "dense_features": list(dataset.dense),
            },
            "model": self.model_name,
            "encoding": self.encoding,
            "model_config": self.model_config,
            "training_config": self.training_config,
            "training": self.training,
            "resamples": self.resamples,
            "comparison": self.comparison,
            "environment": self.environment,
        }
        return json.dumps(content, indent=2, default=_plain) + "\n"

    def _planning_seconds(self) -> str:
        seconds = [each.seconds for each in self.comparison.variants if each.method == MEASURED]
        return f"{min(seconds, default=0):.0f} to {max(seconds, default=0):.0f} s"

    def _headline(self) -> str:
        data = self.dataset
        widths = "-".join(map(str, self.model_config.hidden_units))
        return (
            f"{self.model_name} on {self.dataset_name}: {len(data.train):,} / {len(data.validation):,} / "
            f"{len(data.test):,} rows to train, validate and test; {len(data.sparse)} sparse fields "
            f"({sum(field.vocabulary_size for field in data.sparse):,} table rows x "
            f"{self.model_config.embedding_dim}), {len(data.dense)} dense, MLP {widths}."
        )

    def _cells(self) -> list[tuple[str, ...]]:
        whole = self.comparison
        first = (
            ORIGINAL,
            "",
            f"{whole.parameters:,}",
            "100.0%",
            f"{whole.auc:.4f}",
            f"{whole.log_loss:.4f}",
            *("" for _ in range(len(COLUMNS) - 2 - len(METRICS))),
        )
        return [
            first,
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
                for variant in whole.variants
            ),
        ]


def _logit_error(variant: Variant) -> str:
    if variant.logit_error is None or variant.predicted_logit_error is None:
        return ""
    return f"{variant.logit_error:.4f} ({variant.predicted_logit_error:.4f})"


def output_paths(
    folder: Path, dataset_name: str, model_name: str, *, tag: str | None = None, force: bool
) -> tuple[Path, Path]:
    """Where the markdown and the JSON file go.

    Args:
        tag: tells apart several runs of one model on one dataset.

    Raises:
        OutputExistsError: one is there already and ``force`` is not set.
    """
    stem = "-".join(["quality", dataset_name, model_name, *([tag] if tag else [])])
    paths = (folder / f"{stem}.md", folder / f"{stem}.json")
    for path in paths:
        if path.exists() and not force:
            raise OutputExistsError(f"'{path}' exists already; give --force to replace it")
    return paths


def shown_command(arguments: Sequence[str], *, script: str = "benchmarks/quality.py") -> str:
    """The command line to repeat a run, without what belongs to one machine or does not change the numbers.

    Args:
        arguments: the command's arguments, without the program's name.
        script: the program.
    """
    shown: list[str] = []
    left = iter(arguments)
    for argument in left:
        name, equals, _ = argument.partition("=")
        if name in LOCAL_OPTIONS and not equals:
            next(left, None)
        if name == DATA_OPTION:
            shown += [DATA_OPTION, "DIR"]
        elif name not in (*LOCAL_OPTIONS, *LOCAL_FLAGS):
            shown.append(argument)
    return " ".join([f"python {script}", *shown])


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
