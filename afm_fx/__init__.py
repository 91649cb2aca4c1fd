"""afm_fx: a compiler pass that makes trained click-through-rate models low-rank, proves the rewrite, and exports it."""

from afm_fx.absent_tables import with_tables
from afm_fx.aoti import AotiModel, AotiReport, export_aoti, load_aoti
from afm_fx.apply_files import AppliedFiles, TableReport, apply_to_files, export_onnx_over_files
from afm_fx.apply_plan import apply_plan
from afm_fx.basis import BasisKind
from afm_fx.benchmark import benchmark
from afm_fx.budget import Budget
from afm_fx.calibration import Statistics, calibrate
from afm_fx.capture import capture
from afm_fx.chains import Chain
from afm_fx.change import Change
from afm_fx.compression import Compressed, compress
from afm_fx.contenders import Compiled, ModelFactory, OnnxFile
from afm_fx.explanation import Explanation, explain, explain_plan
from afm_fx.exported_program import to_exported_program
from afm_fx.latency_policy import Latency
from afm_fx.measurement import Measurement
from afm_fx.moments import Moments
from afm_fx.onnx_buckets import export_onnx_buckets
from afm_fx.onnx_check import CheckReport, Finding, check_onnx
from afm_fx.onnx_export import ExportReport, export_onnx
from afm_fx.packing import PackReport, pack
from afm_fx.plan import Evidence, Plan, SitePlan
from afm_fx.planning import Decision, PlanningTask, Policy, make_plan
from afm_fx.policies import Energy, Fixed, FullRank
from afm_fx.program import Program
from afm_fx.quality_comparison import QualityComparison, compare_quality
from afm_fx.recovery import recover
from afm_fx.recovery_report import RecoveryReport
from afm_fx.reduced_precision import PrecisionReport, reduce_precision
from afm_fx.refit import Refit, SiteDrift, refit_plan
from afm_fx.report import CompressionReport, ReportFacts
from afm_fx.runtime import Session
from afm_fx.serving_load import LoadResult, load_test
from afm_fx.sharded_tables import encode_sharded
from afm_fx.sweep import Sweep, SweepPoint, sweep
from afm_fx.tolerance import Tolerance
from afm_fx.typed_inputs import split_inputs
from afm_fx.version import __version__ as __version__
from passes import laws

__all__ = [
    "AotiModel",
    "AotiReport",
    "AppliedFiles",
    "BasisKind",
    "Budget",
    "Chain",
    "Change",
    "CheckReport",
    "Compiled",
    "Compressed",
    "CompressionReport",
    "Decision",
    "Energy",
    "Evidence",
    "Explanation",
    "ExportReport",
    "Finding",
    "Fixed",
    "FullRank",
    "Latency",
    "LoadResult",
    "Measurement",
    "ModelFactory",
    "Moments",
    "OnnxFile",
    "PackReport",
    "Plan",
    "PlanningTask",
    "Policy",
    "PrecisionReport",
    "Program",
    "QualityComparison",
    "RecoveryReport",
    "Refit",
    "ReportFacts",
    "Session",
    "SiteDrift",
    "SitePlan",
    "Statistics",
    "Sweep",
    "SweepPoint",
    "TableReport",
    "Tolerance",
    "apply_plan",
    "apply_to_files",
    "benchmark",
    "calibrate",
    "capture",
    "check_onnx",
    "compare_quality",
    "compress",
    "encode_sharded",
    "explain",
    "explain_plan",
    "export_aoti",
    "export_onnx",
    "export_onnx_buckets",
    "export_onnx_over_files",
    "laws",
    "load_aoti",
    "load_test",
    "make_plan",
    "pack",
    "recover",
    "reduce_precision",
    "refit_plan",
    "split_inputs",
    "sweep",
    "to_exported_program",
    "with_tables",
]
