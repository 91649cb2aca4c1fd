"""Times calls of ONNX Runtime one by one."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils import _pytree as pytree

from afm_fx.file_inputs import feed_of
from afm_fx.onnx_export import export_onnx
from afm_fx.onnx_runtime import open_session
from afm_fx.program import Program
from afm_fx.random_inputs import random_inputs

WARMUP, FEWEST, MOST = 5, 15, 2000
BATCHES = 8
"""Different batches that a program is timed on, in turn."""


def quiet_session(content: bytes, threads: int, provider: str) -> Any:
    """A session of a model in memory."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        path.write_bytes(content)
        return open_session(path, provider, threads)


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
        session = open_session(path, provider, threads)
        feeds = [
            feed_of(session, tuple(pytree.tree_leaves(drawn.draw(batch_size, seed=seed)))) for seed in range(BATCHES)
        ]
        turn = iter(range(10**9))
        return median_us(lambda: session.run(None, feeds[next(turn) % BATCHES]), seconds)
