"""Compresses a user's model from files to files: what ``afm-fx compress`` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afm_fx.capture import capture
from afm_fx.compression import Compressed, compress
from afm_fx.data_files import open_data
from afm_fx.file_batches import FileBatches
from afm_fx.onnx_buckets import BucketsReport, bucket_path, existing_buckets, export_onnx_buckets, weights_path
from afm_fx.onnx_export import ExportReport, export_onnx
from afm_fx.output_directory import refuse_existing, staged_outputs
from afm_fx.policies import Policy
from afm_fx.user_model import build_model

DENSE, LOW_RANK, PLAN, REPORT = "dense.onnx", "low_rank.onnx", "plan.safetensors", "report.json"
OUTPUTS = (DENSE, f"{DENSE}.data", LOW_RANK, f"{LOW_RANK}.data", PLAN, REPORT)
"""Every file that a compression may write."""


@dataclass(frozen=True)
class CompressJob:
    """One compression, from files to files.

    Attributes:
        model: ``package.module:factory``.
        data: calibration data, ``.npz``, ``.npy`` or ``.parquet``.
        out: directory of the outputs.
        policy: picks the ranks.
        checkpoint: state dict of the model, or None for the factory's own weights.
        columns: columns of the data to use, in this order; None for all.
        batch_size: calibration rows a batch.
        max_rows: calibration rows at most, or None for all.
        basis: "afm" or "weight_svd".
        force: replace existing outputs.
        pack: pack the low-rank program for serving.
        inputs: what the low-rank program takes, "original" or "typed".
        buckets: batch sizes for which the low-rank program is also exported with fixed shapes.
    """

    model: str
    data: Path
    out: Path
    policy: Policy
    checkpoint: Path | None = None
    columns: Sequence[str] | None = None
    batch_size: int = 4096
    max_rows: int | None = None
    basis: str = "afm"
    force: bool = False
    pack: bool = True
    inputs: str = "original"
    buckets: tuple[int, ...] = ()

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
    """

    compressed: Compressed
    exports: tuple[ExportReport, ExportReport]
    buckets: BucketsReport | None = None


def run_compress_job(job: CompressJob) -> CompressOutcome:
    """Writes ``dense.onnx``, ``low_rank.onnx``, ``plan.safetensors`` and ``report.json``, or nothing at all.

    With buckets also ``low_rank.batch_<size>.onnx`` and ``low_rank.weights.data``.

    Raises:
        UserError: model, checkpoint, data, policy or output directory are wrong; the message says which and how.
        ExportError: a program cannot be exported, or the file disagrees with torch.
    """
    refuse_existing(job.out, job.outputs, force=job.force)
    file = open_data(job.data)
    model, example_inputs = build_model(job.model, job.checkpoint)
    program = capture(model, example_inputs)
    batches = FileBatches(file, program, job.batch_size, job.columns)
    compressed = compress(
        program, batches, job.policy, basis=job.basis, max_rows=job.max_rows, pack=job.pack, inputs=job.inputs
    )
    with staged_outputs(job.out, job.outputs) as staging:
        low_rank = compressed.program
        buckets = export_onnx_buckets(low_rank, staging / LOW_RANK, job.buckets) if job.buckets else None
        exports = write_outputs(compressed, staging, buckets)
    return CompressOutcome(compressed, exports, buckets)


def write_outputs(
    compressed: Compressed, directory: Path, buckets: BucketsReport | None = None
) -> tuple[ExportReport, ExportReport]:
    """Exports both programs, checked against torch, and writes plan and report (of buckets too) into a directory."""
    dense = export_onnx(compressed.original, directory / DENSE)
    low_rank = export_onnx(compressed.program, directory / LOW_RANK)
    compressed.plan.save(directory / PLAN)
    report: dict[str, Any] = json.loads(compressed.report.to_json())
    report["packing"] = None if compressed.packing is None else asdict(compressed.packing)
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
