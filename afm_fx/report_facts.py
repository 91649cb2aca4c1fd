"""What a report's page tells beyond the report itself: what was measured, what was written, how to repeat it."""

from __future__ import annotations

from dataclasses import dataclass

from afm_fx.benchmark_result import BenchmarkResult
from afm_fx.onnx_export import ExportReport
from afm_fx.packing import PackReport
from afm_fx.quality_comparison import QualityComparison
from afm_fx.recovery_report import RecoveryReport
from afm_fx.reduced_precision import PrecisionReport


@dataclass(frozen=True)
class ReportFile:
    """A file that a compression read or wrote.

    Attributes:
        role: what it is, "calibration rows" for example.
        detail: its size in words.
        sha256: of its bytes, in hexadecimal; empty where they were not hashed.
    """

    role: str
    name: str
    detail: str
    sha256: str = ""


@dataclass(frozen=True)
class ReportFacts:
    """Facts of a compression; what is None or empty was not measured, or not done.

    Attributes:
        timing: original and compressed model side by side, the original first.
        quality: of both on rows with labels.
        exports: of the original and of the compressed model.
        packing: what packing did.
        precision: what became of the tables.
        recovery: how the model was recovered.
        command: the command line that repeats it.
        files: that it read and wrote.
    """

    timing: BenchmarkResult | None = None
    quality: QualityComparison | None = None
    exports: tuple[ExportReport, ExportReport] | None = None
    packing: PackReport | None = None
    precision: PrecisionReport | None = None
    recovery: RecoveryReport | None = None
    command: str = ""
    files: tuple[ReportFile, ...] = ()
