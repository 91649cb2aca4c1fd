"""Load time and memory of one contender, measured in a process in which nothing else is loaded.

Contenders that share a process share its memory, so what each needs cannot be told apart there. The process (this
module, run with ``-m``) imports everything first, and keeps the batches; from then on, what grows is the contender's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from afm_fx.contenders import Competitor, make_contender
from afm_fx.errors import BenchmarkError, MissingPackageError
from afm_fx.inputs import Inputs

CALLS = 3
"""Of every batch: what a runtime keeps for later calls is there after the second."""


@dataclass(frozen=True)
class Memory:
    """What one contender needs, alone in a process.

    Attributes:
        contender: its name.
        load_seconds: from the file or factory to something that can be called; the file was read before, so that it
            comes from the system's cache.
        first_call_seconds: the first call at the largest batch size, which compiles what is compiled on demand.
        loaded_bytes: of resident memory that loading added.
        serving_bytes: of resident memory that loading and running every batch size added.
    """

    contender: str
    load_seconds: float
    first_call_seconds: float
    loaded_bytes: int
    serving_bytes: int


def measure_memory(name: str, competitor: Competitor, batches: Sequence[Inputs], threads: int) -> Memory:
    """Loads and runs a file or a model in a fresh process.

    Args:
        name: how results call it.
        competitor: what to load.
        batches: one per batch size, the largest last.
        threads: threads within an operator.

    Raises:
        MissingPackageError: psutil is not installed.
        BenchmarkError: the process failed; the message ends with the last line that it wrote.
    """
    if importlib.util.find_spec("psutil") is None:
        raise MissingPackageError("memory is read with psutil: install afm-fx[memory]")
    path = os.pathsep.join(folder for folder in sys.path if folder)
    done = subprocess.run(
        [sys.executable, "-m", "afm_fx.memory"],
        input=pickle.dumps((name, competitor, batches, threads)),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    lines = done.stdout.splitlines()  # a factory may print too
    if done.returncode != 0 or not lines:
        told = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BenchmarkError(f"contender '{name}' fails in a process of its own: {told}")
    return msgspec.json.decode(lines[-1], type=Memory)


def _measured(name: str, competitor: Competitor, batches: Sequence[Inputs], threads: int) -> Memory:
    """Measures in this process, which should have done nothing else before."""
    import psutil  # noqa: PLC0415 - an extra

    with contextlib.suppress(ImportError):
        import onnxruntime as _  # noqa: PLC0415 - an extra, imported before anything is measured
    torch.set_num_threads(threads)
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    contender = make_contender(name, competitor, threads)
    load_seconds = time.perf_counter() - started
    loaded = process.memory_info().rss
    calls = [contender.prepare(batch) for batch in reversed(batches)]
    with torch.inference_mode():
        started = time.perf_counter()
        calls[0]()
        first_call_seconds = time.perf_counter() - started
        for call in calls:
            for _ in range(CALLS):
                call()
    serving = process.memory_info().rss
    return Memory(name, load_seconds, first_call_seconds, loaded - before, serving - before)


if __name__ == "__main__":
    memory = _measured(*pickle.load(sys.stdin.buffer))  # noqa: S301 - from the process that started this one
    sys.stdout.write("\n" + msgspec.json.encode(memory).decode() + "\n")
