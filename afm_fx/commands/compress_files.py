"""Compresses a user's model from files to files: what ``afm-fx compress`` does."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from afm_fx.calibration import Statistics
from afm_fx.commands.command_options import command_line, spelled
from afm_fx.commands.compress_config import CompressConfig
from afm_fx.compression import Compressed, compress, serving_form
from afm_fx.data import FileBatches, open_data
from afm_fx.io import refuse_existing, staged_outputs, write_text
from afm_fx.measure import MAX_DIFFERENT_BATCHES, Measurement, benchmark, compare_quality
from afm_fx.program import build_model, capture
from afm_fx.recovery import recover
from afm_fx.report import REPORT_PACKAGES, ReportFacts, import_for_report, report_page
from afm_fx.runtime import (
    ExportReport,
    bucket_path,
    existing_buckets,
    export_aoti,
    export_onnx,
    export_onnx_buckets,
    reduce_precision,
    weights_path,
)

DENSE, LOW_RANK, PLAN, REPORT = "dense.onnx", "low_rank.onnx", "plan.safetensors", "report.json"
PACKAGE, CONFIG = "low_rank.pt2", "config.json"
OUTPUTS = (DENSE, f"{DENSE}.data", LOW_RANK, f"{LOW_RANK}.data", PACKAGE, PLAN, REPORT, CONFIG)
"""Every file that a compression may write."""

TIMED_BATCH_SIZES = (1, 64, 1024)
"""Rows per call at which both files are timed for the page."""

TIMED_SECONDS = 0.5
"""Timing of a file at a batch size for the page, about: enough for a median to look at, not to publish."""

COMPARED_ROWS = 65_536
"""Calibration rows on which the error of reduced tables is measured, about."""


def write_compressed(config: CompressConfig) -> tuple[Compressed, ReportFacts]:
    """Writes ``dense.onnx``, ``low_rank.onnx``, ``plan.safetensors``, ``report.json`` and ``config.json``, or nothing.

    Where asked for, ``low_rank.pt2`` as well, and ``low_rank.onnx`` with reduced tables; their error is measured on
    the calibration rows.
    With buckets also ``low_rank.batch_<size>.onnx`` and ``low_rank.weights.data``. The report's page is written last.

    Raises:
        UserError: model, checkpoint, data, policy or output directory are wrong; the message says which and how.
        ExportError: a program cannot be exported, or the file disagrees with torch.
    """
    outputs = outputs_of(config)
    refuse_existing(config.out, outputs, force=config.force)
    if config.report is not None:
        refuse_existing(config.report.parent, [config.report.name], force=config.force)
        for module in REPORT_PACKAGES:
            import_for_report(module)
    statistics = None if config.statistics is None else Statistics.load(config.statistics)
    file = open_data(config.data)
    model, example_inputs = build_model(config.model, config.checkpoint)
    program = capture(model, example_inputs)
    batches = FileBatches(file, program, config.batch_size, _features(config, file.names))
    evaluation = None
    if config.evaluation is not None:  # columns that are missing are told before any work
        evaluation = FileBatches(
            open_data(config.evaluation), program, config.batch_size, config.columns or None, config.labels
        )
    policy = config.policy(evaluation)
    recovery = None
    epochs, labels = config.recover_epochs, config.labels
    pairs = replace(batches, labels=labels) if epochs else batches  # before any work: the columns may be missing
    compressed = compress(
        program, batches, policy, basis=config.basis, max_rows=config.max_rows, pack=False, statistics=statistics
    )
    if epochs:
        recovered = recover(compressed.program, program, pairs, labels=bool(labels), epochs=epochs)
        compressed, recovery = replace(compressed, program=recovered.program), recovered.report
    # Only now: a packed program has parameters that follow from others, which cannot be trained.
    compressed = serving_form(compressed, pack=config.pack, inputs=config.inputs)
    precision = None
    if config.tables is not None:
        rows = itertools.islice(batches, max(1, COMPARED_ROWS // config.batch_size))
        reduced = reduce_precision(compressed.program, config.tables, rows)
        compressed, precision = replace(compressed, program=reduced.program), reduced.report
    with staged_outputs(config.out, outputs) as staging:
        low_rank = compressed.program
        facts = ReportFacts(
            buckets=export_onnx_buckets(low_rank, staging / LOW_RANK, config.buckets) if config.buckets else (),
            package=export_aoti(low_rank, staging / PACKAGE) if config.aoti else None,
            packing=compressed.packing,
            precision=precision,
            recovery=recovery,
            command=shlex.join(["afm-fx", "compress", *command_line(config)]),
        )
        facts = replace(facts, exports=write_outputs(compressed, staging, facts))
        (staging / CONFIG).write_text(json.dumps(spelled(config), indent=2) + "\n", encoding="utf-8")
        page = ""
        if config.report is not None:
            if evaluation is not None:
                quality = compare_quality(compressed.original, compressed.program, evaluation)
                facts = replace(facts, quality=quality)
            facts = replace(facts, timing=_timed(batches, staging))
            page = report_page(compressed.report, config.model, facts)
    if config.report is not None:
        write_text(config.report, page, force=config.force)
    return compressed, facts


def _timed(batches: FileBatches, directory: Path) -> Measurement:
    """Both files side by side on calibration rows, one thread."""
    rows = min(max(TIMED_BATCH_SIZES) * MAX_DIFFERENT_BATCHES, batches.file.rows)
    inputs = next(iter(replace(batches, batch_size=rows, labels=())))
    files = {"original": directory / DENSE, "low-rank": directory / LOW_RANK}
    return benchmark(files, inputs, batch_sizes=TIMED_BATCH_SIZES, threads=1, seconds=TIMED_SECONDS)


def outputs_of(config: CompressConfig) -> tuple[str, ...]:
    """Every file that a compression may write or, where an earlier one with buckets wrote it, replace."""
    target = config.out / LOW_RANK
    buckets = [*(bucket_path(target, size) for size in config.buckets), *existing_buckets(target)]
    return (*OUTPUTS, *dict.fromkeys(path.name for path in (*buckets, weights_path(target))))


def _features(config: CompressConfig, names: Iterable[str]) -> Sequence[str] | None:
    """The columns to feed, None for all; labels are left out, which a model of one tensor would take for features."""
    if config.columns or not config.labels:
        return config.columns or None
    return [name for name in names if name not in config.labels]


def write_outputs(
    compressed: Compressed, directory: Path, facts: ReportFacts | None = None
) -> tuple[ExportReport, ExportReport]:
    """Exports both programs, checked against torch, and writes plan and report (of buckets too) into a directory."""
    exports = export_onnx(compressed.original, directory / DENSE), export_onnx(compressed.program, directory / LOW_RANK)
    compressed.plan.save(directory / PLAN)
    facts = replace(facts or ReportFacts(packing=compressed.packing), exports=exports)
    (directory / REPORT).write_text(compressed.report.to_json(facts) + "\n", encoding="utf-8")
    return exports
