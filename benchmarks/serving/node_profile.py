"""Times the nodes of an ONNX file and sets them against what this core could do at best.

The floor of a matrix product is its multiply-adds over the rate that one large product reaches in the same runtime;
that of a gather is the bytes of its rows over the rate at which the runtime copies one large block. All other nodes
have no floor: an ideal kernel does their work while it has the numbers in registers anyway.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

PRODUCTS = frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
SQUARE = 1024
"""Side of the matrices whose product tells the core's rate."""
COPIED = 16 * 1024 * 1024
"""Numbers of the block whose copy tells the memory's rate."""
SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Peak:
    """What one core reaches in ONNX Runtime.

    Attributes:
        multiply_adds_per_us: in a product of two 1024 x 1024 float32 matrices.
        bytes_per_us: copied in one large block.
    """

    multiply_adds_per_us: float
    bytes_per_us: float


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph that the runtime made of a file.

    Attributes:
        name: the node's name.
        operator: its operator.
        shapes: shapes of its tensor inputs.
        median_us: median of its kernel's time as the runtime's profile gives it.
        multiply_adds: of a product, else 0.
        gathered_bytes: of a gather, else 0.
    """

    name: str
    operator: str
    shapes: tuple[tuple[int, ...], ...]
    median_us: float
    multiply_adds: int = 0
    gathered_bytes: int = 0

    def floor_us(self, peak: Peak) -> float:
        """Microseconds that it takes at least."""
        return self.multiply_adds / peak.multiply_adds_per_us + self.gathered_bytes / peak.bytes_per_us


def session(model: Path | bytes, *, profile: str | None = None) -> onnxruntime.InferenceSession:
    """One thread on the CPU; profiled where a prefix of the profile's file is given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def node_times(path: Path, inputs: dict[str, Any], folder: Path, *, repeats: int, warmup: int = 5) -> list[NodeTime]:
    """Profiles a file on one batch, node by node, in order of execution.

    Args:
        path: the ONNX file.
        inputs: arrays by input name.
        folder: where the runtime's profile goes.
        repeats: profiled calls.
        warmup: calls before them that do not count.
    """
    profiled = session(path, profile=str(folder / "profile"))
    for _ in range(warmup + repeats):
        profiled.run(None, inputs)
    report = Path(profiled.end_profiling())
    events = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    spent: dict[str, list[float]] = {}
    told: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(SUFFIX):
            name = event["name"].removesuffix(SUFFIX)
            spent.setdefault(name, []).append(float(event["dur"]))
            told[name] = event["args"]
    return [_node(name, told[name], durations[warmup:]) for name, durations in spent.items()]


def _node(name: str, told: dict[str, Any], durations: list[float]) -> NodeTime:
    shapes = tuple(tuple(next(iter(each.values()))) for each in told["input_type_shape"])
    results = [tuple(next(iter(each.values()))) for each in told["output_type_shape"]]
    operator, multiply_adds, gathered = told["op_name"], 0, 0
    if operator in PRODUCTS:
        multiply_adds = math.prod(results[0]) * math.prod(shapes[0]) // math.prod(results[0][:-1])
    if operator == "Gather":
        gathered = int(told["output_size"])
    return NodeTime(name, operator, shapes, float(np.median(durations)), multiply_adds, gathered)


def call_us(path: Path, inputs: dict[str, Any], *, repeats: int) -> float:
    """Median microseconds of a whole call without a profile."""
    plain = session(path)
    return _median_us(lambda: plain.run(None, inputs), repeats)


def measure_peak(repeats: int = 15) -> Peak:
    """The core's rates, measured now."""
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((SQUARE, SQUARE), dtype=np.float32) for _ in range(2))
    product = session(_model("MatMul", {"a": left.shape, "b": right.shape}, (SQUARE, SQUARE)))
    product_us = _median_us(lambda: product.run(None, {"a": left, "b": right}), repeats)
    halves = {name: np.ones((1, COPIED // 2), dtype=np.float32) for name in ("a", "b")}
    shapes = {name: half.shape for name, half in halves.items()}
    copy = session(_model("Concat", shapes, (1, COPIED), axis=1))
    copy_us = _median_us(lambda: copy.run(None, halves), repeats)
    return Peak(SQUARE**3 / product_us, 4 * COPIED / copy_us)


def _median_us(action: Callable[[], object], repeats: int) -> float:
    """Median of the calling thread's processor time: what other processes do on the core does not count."""
    spent = []
    for _ in range(repeats + 2):
        start = time.thread_time_ns()
        action()
        spent.append(time.thread_time_ns() - start)
    return float(np.median(spent[2:])) / 1e3


def _model(operator: str, inputs: Mapping[str, tuple[int, ...]], result: tuple[int, ...], **attributes: Any) -> bytes:
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), ["result"], **attributes)],
        operator,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, result)],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data
