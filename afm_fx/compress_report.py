"""The report's page of a compression from files: with what was measured on its files, and how to repeat it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from afm_fx.benchmark import MAX_DIFFERENT_BATCHES, benchmark
from afm_fx.command_options import command_line
from afm_fx.file_batches import FileBatches
from afm_fx.measurement import Measurement
from afm_fx.quality_comparison import compare_quality
from afm_fx.report import ReportFacts, ReportFile
from afm_fx.report_page import report_page

if TYPE_CHECKING:
    from afm_fx.compress_config import CompressConfig
    from afm_fx.compress_files import CompressedFiles

SECONDS = 0.5
"""Timing of each file at each batch size, about: enough for a median to look at, not for a benchmark to publish."""


def compress_page(
    config: CompressConfig,
    outcome: CompressedFiles,
    batches: FileBatches,
    evaluation: FileBatches | None,
    files: tuple[Path, Path, Path],
) -> str:
    """The page, as text.

    Args:
        config: what was asked for.
        outcome: what was done.
        batches: the calibration rows.
        evaluation: rows with labels, or None.
        files: the original's and the low-rank program's ONNX file and the plan, wherever they are at the moment.

    Raises:
        UserError: the labels cannot be used, or the extra ``report`` is not installed.
    """
    compressed = outcome.compressed
    dense, low_rank, plan = files
    facts = ReportFacts(
        timing=_timing(config, batches, dense, low_rank) if config.report_batch_sizes else None,
        quality=None if evaluation is None else compare_quality(compressed.original, compressed.program, evaluation),
        exports=outcome.exports,
        packing=compressed.packing,
        precision=outcome.precision,
        recovery=outcome.recovery,
        command=shlex.join(["afm-fx", "compress", *command_line(config)]),
        files=tuple(files_of(config, batches.file.rows, plan)),
    )
    return report_page(compressed.report, config.model, facts)


def _timing(config: CompressConfig, batches: FileBatches, dense: Path, low_rank: Path) -> Measurement:
    """Both files side by side on calibration rows, one thread."""
    rows = max(config.report_batch_sizes) * MAX_DIFFERENT_BATCHES
    inputs = next(iter(replace(batches, batch_size=min(rows, batches.file.rows), labels=())))
    files = {"original": dense, "low-rank": low_rank}
    return benchmark(files, inputs, batch_sizes=config.report_batch_sizes, threads=1, seconds=SECONDS)


def files_of(config: CompressConfig, rows: int, plan: Path) -> Iterator[ReportFile]:
    """What was read and written; digests of what decides the result, but for data, which takes long to read."""
    yield ReportFile("calibration rows", str(config.data), f"{rows:,} rows, {_bytes(config.data)}")
    for role, path in (("statistics", config.statistics), ("checkpoint", config.checkpoint)):
        if path is not None:
            yield ReportFile(role, str(path), _bytes(path), _sha256(path))
    if config.evaluation is not None:
        yield ReportFile("labelled rows", str(config.evaluation), _bytes(config.evaluation))
    yield ReportFile("plan", str(config.out / plan.name), _bytes(plan), _sha256(plan))


def _bytes(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files):,} bytes"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
