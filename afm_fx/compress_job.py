"""Compresses a user's model from files to files: what ``afm-fx compress`` does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from afm_fx.aoti_export import AotiReport, export_aoti
from afm_fx.basis import BasisKind
from afm_fx.capture import capture
from afm_fx.compress_report import compress_page
from afm_fx.compression import Compressed, compress
from afm_fx.data_files import open_data
from afm_fx.file_batches import FileBatches
from afm_fx.onnx_buckets import BucketsReport, bucket_path, existing_buckets, export_onnx_buckets, weights_path
from afm_fx.onnx_export import ExportReport, export_onnx
from afm_fx.output_directory import refuse_existing, staged_outputs, write_text
from afm_fx.packing import pack_reported
from afm_fx.policies import Policy
from afm_fx.program import Program
from afm_fx.recovery import recover
from afm_fx.recovery_report import RecoveryReport
from afm_fx.reduced_precision import PrecisionReport, reduce_precision
from afm_fx.report_page import check_report_packages
from afm_fx.statistics import Statistics
from afm_fx.tolerance import LabelledTolerance
from afm_fx.typed_inputs import InputKind, split_inputs
from afm_fx.user_model import build_model

DENSE, LOW_RANK, PLAN, REPORT = "dense.onnx", "low_rank.onnx", "plan.safetensors", "report.json"
PACKAGE = "low_rank.pt2"
OUTPUTS = (DENSE, f"{DENSE}.data", LOW_RANK, f"{LOW_RANK}.data", PACKAGE, PLAN, REPORT)
"""Every file that a compression may write."""

COMPARED_ROWS = 65_536
"""Calibration rows on which the error of reduced tables is measured, about."""


@dataclass(frozen=True)
class CompressJob:
    """One compression, from files to files.

    Attributes:
        model: ``package.module:factory``.
        data: calibration data, ``.npz``, ``.npy``, ``.parquet`` or a folder of the last.
        out: directory of the outputs.
        policy: picks the ranks; one with labels is measured on ``evaluation``.
        checkpoint: state dict of the model, or None for the factory's own weights.
        columns: columns of the data to use, in this order; None for all.
        batch_size: calibration rows a batch.
        max_rows: calibration rows at most, or None for all.
        basis: see :func:`afm_fx.make_plan`.
        force: replace existing outputs.
        pack: pack the low-rank program for serving.
        inputs: what the low-rank program takes, "original" or "typed".
        buckets: batch sizes for which the low-rank program is also exported with fixed shapes.
        tables: store the low-rank program's tables in "float16" or "int8"; None for as they are.
        aoti: compile the low-rank program with AOTInductor as well.
        recover_epochs: train the low-rank program on the original's logits for so many epochs over the data; 0 for not.
        labels: columns of labels, one per task, to recover on as well, and in ``evaluation``.
        report: page to write, see :meth:`afm_fx.CompressionReport.to_html`; None for none.
        report_batch_sizes: batch sizes at which both files are timed for the page; empty for no timing.
        evaluation: rows with ``labels`` on which AUC and LogLoss are measured, for the page or the policy; None for
            none.
        statistics: file of an earlier calibration, which is left out then; None for none.
    """

    model: str
    data: Path
    out: Path
    policy: Policy | LabelledTolerance
    checkpoint: Path | None = None
    columns: Sequence[str] | None = None
    batch_size: int = 4096
    max_rows: int | None = None
    basis: str = BasisKind.MEASURED.value
    force: bool = False
    pack: bool = True
    inputs: str = "original"
    buckets: tuple[int, ...] = ()
    tables: str | None = None
    aoti: bool = False
    recover_epochs: int = 0
    labels: tuple[str, ...] = ()
    report: Path | None = None
    report_batch_sizes: tuple[int, ...] = ()
    evaluation: Path | None = None
    statistics: Path | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every file that this compression may write or, where an earlier one with buckets wrote it, replace."""
        target = self.out / LOW_RANK
        buckets = [*(bucket_path(target, size) for size in self.buckets), *existing_buckets(target)]
        return (*OUTPUTS, *dict.fromkeys(each.name for each in (*buckets, weights_path(target))))


@dataclass(frozen=True)
class CompressOutcome:
    """What a compression did.

    Attributes:
        compressed: programs, plan and report.
        exports: of the original and of the low-rank program.
        buckets: the exports with fixed shapes, None where there are none.
        precision: what became of the low-rank program's tables, None where they are as they were.
        package: of the low-rank program compiled with AOTInductor, None where that was not asked for.
        recovery: how the low-rank program was recovered, None where it was not.
    """

    compressed: Compressed
    exports: tuple[ExportReport, ExportReport]
    buckets: BucketsReport | None = None
    precision: PrecisionReport | None = None
    package: AotiReport | None = None
    recovery: RecoveryReport | None = None


def run_compress_job(job: CompressJob) -> CompressOutcome:
    """Writes ``dense.onnx``, ``low_rank.onnx``, ``plan.safetensors`` and ``report.json``, or nothing at all.

    Where asked for, ``low_rank.pt2`` as well, and ``low_rank.onnx`` with reduced tables; their error is measured on
    the calibration rows.
    With buckets also ``low_rank.batch_<size>.onnx`` and ``low_rank.weights.data``. The report's page is written last.

    Raises:
        UserError: model, checkpoint, data, policy or output directory are wrong; the message says which and how.
        ExportError: a program cannot be exported, or the file disagrees with torch.
    """
    refuse_existing(job.out, job.outputs, force=job.force)
    if job.report is not None:
        refuse_existing(job.report.parent, [job.report.name], force=job.force)
        check_report_packages()
    statistics = None if job.statistics is None else Statistics.load(job.statistics)
    file = open_data(job.data)
    model, example_inputs = build_model(job.model, job.checkpoint)
    program = capture(model, example_inputs)
    columns = job.columns
    if job.labels and columns is None:  # a model of one tensor would take them for features
        columns = [name for name in file.names if name not in job.labels]
    batches = FileBatches(file, program, job.batch_size, columns)
    evaluation = None if job.evaluation is None else _labelled(job, program)
    policy = job.policy
    if isinstance(policy, LabelledTolerance):
        policy = policy.on(_labelled(job, program))
    recovery = None
    if job.recover_epochs:
        compressed, recovery = _recovered(job, policy, batches, statistics)
    else:
        compressed = compress(
            program, batches, policy, basis=job.basis, max_rows=job.max_rows, pack=job.pack, inputs=job.inputs,
            statistics=statistics,
        )  # fmt: skip
    precision = None
    if job.tables is not None:
        rows = itertools.islice(batches, max(1, COMPARED_ROWS // job.batch_size))
        reduced = reduce_precision(compressed.program, job.tables, rows)
        compressed, precision = replace(compressed, program=reduced.program), reduced.report
    with staged_outputs(job.out, job.outputs) as staging:
        low_rank = compressed.program
        buckets = export_onnx_buckets(low_rank, staging / LOW_RANK, job.buckets) if job.buckets else None
        exports = write_outputs(compressed, staging, buckets, precision, recovery)
        package = export_aoti(low_rank, staging / PACKAGE) if job.aoti else None
        outcome = CompressOutcome(compressed, exports, buckets, precision, package, recovery)
        page = None
        if job.report is not None:
            files = (staging / DENSE, staging / LOW_RANK, staging / PLAN)
            page = compress_page(job, outcome, batches, evaluation, files)
    if job.report is not None and page is not None:
        write_text(job.report, page, force=job.force)
    return outcome


def _labelled(job: CompressJob, program: Program) -> FileBatches:
    """The rows to measure quality on; columns that are missing are told before any work."""
    file = open_data(job.evaluation or job.data)
    names = [name for name in file.names if name not in job.labels] if job.columns is None else job.columns
    return FileBatches(file, program, job.batch_size, names, job.labels)


def _recovered(
    job: CompressJob, policy: Policy, batches: FileBatches, statistics: Statistics | None
) -> tuple[Compressed, RecoveryReport]:
    """Compresses, recovers, and only then packs: a packed program has parameters that follow from others."""
    pairs = replace(batches, labels=job.labels)  # before any work: the columns may be missing
    compressed = compress(
        batches.program, batches, policy, basis=job.basis, max_rows=job.max_rows, pack=False,
        statistics=statistics,
    )  # fmt: skip
    recovered = recover(
        compressed.program, compressed.original, pairs, labels=bool(job.labels), epochs=job.recover_epochs
    )
    program = recovered.program
    if job.pack:
        packed = pack_reported(program, inputs=job.inputs)
        return replace(compressed, program=packed.program, packing=packed.report), recovered.report
    served = split_inputs(program) if job.inputs == InputKind.TYPED else program
    return replace(compressed, program=served), recovered.report


def write_outputs(
    compressed: Compressed,
    directory: Path,
    buckets: BucketsReport | None = None,
    precision: PrecisionReport | None = None,
    recovery: RecoveryReport | None = None,
) -> tuple[ExportReport, ExportReport]:
    """Exports both programs, checked against torch, and writes plan and report (of buckets too) into a directory."""
    dense = export_onnx(compressed.original, directory / DENSE)
    low_rank = export_onnx(compressed.program, directory / LOW_RANK)
    compressed.plan.save(directory / PLAN)
    report: dict[str, Any] = json.loads(compressed.report.to_json())
    report["packing"] = None if compressed.packing is None else asdict(compressed.packing)
    report["precision"] = None if precision is None else asdict(precision)
    report["recovery"] = None if recovery is None else asdict(recovery)
    report["exports"] = [_export_entry(each) for each in (dense, low_rank)]
    report["buckets"] = None if buckets is None else [_export_entry(each) for each in buckets.exports]
    (directory / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return dense, low_rank


def _export_entry(export: ExportReport) -> dict[str, Any]:
    return {
        "file": export.path.name,
        "bytes": export.bytes,
        "parameters": export.parameters,
        "opset": export.opset,
        "operators": dict(export.operators),
        "max_abs_difference": export.max_abs_difference,
    }
