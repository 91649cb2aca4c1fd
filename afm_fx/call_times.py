"""Times calls of ONNX Runtime one by one."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils import _pytree as pytree

from afm_fx.errors import MissingPackageError, PolicyError
from afm_fx.onnx_export import export_onnx
from afm_fx.onnx_sessions import feed_of, open_session
from afm_fx.program import Program
from afm_fx.random_inputs import random_inputs

WARMUP, FEWEST, MOST = 5, 15, 2000
_INSTALL = {
    "cuda": "afm-fx[gpu] in place of afm-fx[cpu]: the two ONNX Runtimes cannot live side by side",
    "tensorrt": "afm-fx[gpu] in place of afm-fx[cpu], and NVIDIA TensorRT",
    "openvino": "onnxruntime-openvino in place of onnxruntime: the two cannot live side by side",
}
"""What brings an execution provider along."""

BATCHES = 8
"""Different batches that a program is timed on, in turn."""


def provider_name(provider: str) -> str:
    """ONNX Runtime's name of an execution provider, from a short name such as "cpu" or "cuda".

    Raises:
        PolicyError: this machine's ONNX Runtime has no such provider.
        MissingPackageError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - an extra (cpu or gpu)
    except ImportError as error:
        raise MissingPackageError("latencies are measured with ONNX Runtime: install afm-fx[cpu] or [gpu]") from error
    available = onnxruntime.get_available_providers()
    for name in available:
        if provider.lower() in (name.lower(), _short(name)):
            return str(name)
    hint = _INSTALL.get(provider.lower())
    raise PolicyError(
        f"ONNX Runtime has no execution provider '{provider}' here; it has {', '.join(map(_short, available))}"
        + (f". Install {hint}" if hint else "")
    )


def quiet_session(content: bytes, threads: int, provider: str) -> Any:
    """A session of a model in memory."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        path.write_bytes(content)
        return open_session(path, threads, provider)


def median_us(call: Callable[[], Any], seconds: float) -> float:
    """The median time of a call in microseconds, over about so many seconds of calls."""
    for _ in range(WARMUP):
        call()
    spent: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(spent) < FEWEST or (time.perf_counter_ns() < end and len(spent) < MOST):
        start = time.perf_counter_ns()
        call()
        spent.append(time.perf_counter_ns() - start)
    return statistics.median(spent) / 1e3


def program_p50_us(program: Program, batch_size: int, threads: int, provider: str, seconds: float) -> float:
    """The median latency of a program exported to ONNX, on random rows that are valid for it, in microseconds.

    Raises:
        ExportError: the program cannot be exported.
    """
    drawn = random_inputs(program)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "program.onnx"
        export_onnx(program, path, check=False)
        session = open_session(path, threads, provider)
        feeds = [
            feed_of(session, tuple(pytree.tree_leaves(drawn.draw(batch_size, seed=seed)))) for seed in range(BATCHES)
        ]
        turn = iter(range(10**9))
        return median_us(lambda: session.run(None, feeds[next(turn) % BATCHES]), seconds)


def _short(name: str) -> str:
    return name.removesuffix("ExecutionProvider").lower()
