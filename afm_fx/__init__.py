"""afm_fx: a compiler pass that makes trained click-through-rate models low-rank, proves the rewrite, and exports it."""

from afm_fx.basis import BasisKind
from afm_fx.benchmark import benchmark
from afm_fx.benchmark_result import BenchmarkResult
from afm_fx.calibration import Statistics, calibrate
from afm_fx.capture import capture
from afm_fx.chains import Chain, chains_table, find_chains
from afm_fx.compression import Compressed, apply_plan, compress
from afm_fx.explanation import Explanation, explain
from afm_fx.moments import Moments
from afm_fx.onnx_buckets import BucketsReport, export_onnx_buckets
from afm_fx.onnx_export import ExportReport, export_onnx
from afm_fx.packing import PackReport, pack
from afm_fx.plan import Plan, SitePlan
from afm_fx.planning import make_plan
from afm_fx.policies import Budget, Energy, Fixed, FullRank, Policy
from afm_fx.program import Program
from afm_fx.report import CompressionReport
from afm_fx.typed_inputs import split_inputs
from passes import laws

__version__ = "0.1.0"

__all__ = [
    "BasisKind",
    "BenchmarkResult",
    "BucketsReport",
    "Budget",
    "Chain",
    "Compressed",
    "CompressionReport",
    "Energy",
    "Explanation",
    "ExportReport",
    "Fixed",
    "FullRank",
    "Moments",
    "PackReport",
    "Plan",
    "Policy",
    "Program",
    "SitePlan",
    "Statistics",
    "apply_plan",
    "benchmark",
    "calibrate",
    "capture",
    "chains_table",
    "compress",
    "explain",
    "export_onnx",
    "export_onnx_buckets",
    "find_chains",
    "laws",
    "make_plan",
    "pack",
    "split_inputs",
]
