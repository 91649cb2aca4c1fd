"""The report's page of a compression from files: with what was measured on them, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from afm_fx.benchmark import MAX_DIFFERENT_BATCHES, benchmark
from afm_fx.command_options import command_line
from afm_fx.file_batches import FileBatches
from afm_fx.measurement import Measurement
from afm_fx.quality_comparison import compare_quality
from afm_fx.report import ReportFacts
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
    files: Mapping[str, Path],
) -> str:
    """The page, as text.

    Args:
        config: what was asked for.
        outcome: what was done.
        batches: the calibration rows.
        evaluation: rows with labels, or None.
        files: ONNX files to time, by the names that they are shown under, wherever they are at the moment.

    Raises:
        UserError: the labels cannot be used, or the extra ``report`` is not installed.
    """
    compressed = outcome.compressed
    facts = ReportFacts(
        timing=_timing(config, batches, files) if config.report_batch_sizes else None,
        quality=None if evaluation is None else compare_quality(compressed.original, compressed.program, evaluation),
        exports=outcome.exports,
        packing=compressed.packing,
        precision=outcome.precision,
        recovery=outcome.recovery,
        command=shlex.join(["afm-fx", "compress", *command_line(config)]),
    )
    return report_page(compressed.report, config.model, facts)


def _timing(config: CompressConfig, batches: FileBatches, files: Mapping[str, Path]) -> Measurement:
    """The files side by side on calibration rows, one thread."""
    rows = max(config.report_batch_sizes) * MAX_DIFFERENT_BATCHES
    inputs = next(iter(replace(batches, batch_size=min(rows, batches.file.rows), labels=())))
    return benchmark(files, inputs, batch_sizes=config.report_batch_sizes, threads=1, seconds=SECONDS)
