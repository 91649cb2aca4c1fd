"""What a server must show under load: the highest rate it holds, and that half of it holds for long."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from afm_fx.errors import BenchmarkError
from afm_fx.measure import SUMMARY, LoadResult

FLAT = 0.01
"""Memory is called flat where it grows by no more than this share of itself."""

SAMPLE_SECONDS = 0.25
"""Between two looks at resident memory."""

Run = tuple[LoadResult, tuple[int, ...]]
"""A result, and the resident memory of its process in bytes, in order."""

RunLoad = Callable[[Sequence[str]], Run]
"""Runs ``afm-fx load`` with arguments, a JSON path not among them."""


def memory_growth(resident: Sequence[int]) -> int | None:
    """Bytes by which the median resident memory of a run's last third exceeds that of its middle third.

    The first third is left out: there the process begins, the arrivals of the whole run lie ready and buffers find
    their size. None where fewer than 9 samples were taken.
    """
    third = len(resident) // 3
    if third < 3:
        return None
    middle, last = resident[third : 2 * third], resident[2 * third :]
    return sorted(last)[len(last) // 2] - sorted(middle)[third // 2]


@dataclass(frozen=True)
class LoadProof:
    """One server under load.

    Attributes:
        highest: at the highest rate that holds the bound.
        half: at half that rate, for long.
        resident: bytes of resident memory of the process at half the rate, in order.
        half_summary: LoadGen's own summary of the latter.
    """

    highest: LoadResult
    half: LoadResult
    resident: tuple[int, ...]
    half_summary: str

    @property
    def lost(self) -> int:
        """Requests without an answer at half the rate."""
        return self.half.runs[0].lost

    @property
    def within_bound(self) -> bool:
        """Whether p99 stayed within the bound at half the rate."""
        p99_us = self.half.runs[0].latencies.p99_us
        return p99_us is not None and p99_us <= 1e3 * self.half.test.latency_bound_ms

    @property
    def memory_flat(self) -> bool:
        """Whether the process's memory kept its size at half the rate."""
        growth = memory_growth(self.resident)
        return growth is not None and growth <= FLAT * self.resident[-1]

    @property
    def holds(self) -> bool:
        """All three, and LoadGen's verdict."""
        return self.half.valid and self.lost == 0 and self.within_bound and self.memory_flat


@dataclass(frozen=True)
class ProofSettings:
    """How servers are put under load.

    Attributes:
        batch_size: rows of a request.
        latency_bound_ms: bound of p99, in milliseconds.
        seconds: duration of the runs that measure.
        half_seconds: duration of the run at half the highest rate.
        threads: threads within an operator.
    """

    batch_size: int = 64
    latency_bound_ms: float = 10.0
    seconds: float = 10.0
    half_seconds: float = 60.0
    threads: int = 1


def prove(
    files: Mapping[str, Path], inputs: Path, logs: Path, settings: ProofSettings, run: RunLoad
) -> dict[str, LoadProof]:
    """Puts every file under load.

    Args:
        files: ONNX files by name.
        inputs: rows to make requests of.
        logs: where LoadGen's logs go.
        settings: batch size, bound and durations.
        run: runs ``afm-fx load``.

    Raises:
        BenchmarkError: a run failed.
    """
    proofs = {}
    for name, path in files.items():
        common = [
            f"{name}={path}", "--inputs", str(inputs), "--batch-size", str(settings.batch_size),
            "--threads", str(settings.threads), "--latency-bound", f"{settings.latency_bound_ms:g}",
        ]  # fmt: skip
        base = logs / path.stem

        def load(folder: str, seconds: float, *more: str, common: list[str] = common, base: Path = base) -> Run:
            return run([*common, "--seconds", f"{seconds:g}", "--out", str(base / folder), *more])

        highest, _ = load("highest", settings.seconds)
        half, resident = load("half", settings.half_seconds, "--qps", f"{highest.runs[0].target_qps / 2:.6g}")
        summary = (Path(half.runs[0].logs) / SUMMARY).read_text(encoding="utf-8")
        proofs[name] = LoadProof(highest, half, resident, summary)
    return proofs


def run_apart(arguments: Sequence[str]) -> Run:
    """Runs ``afm-fx load`` in a process of its own, so that its memory is the server's alone.

    A run that LoadGen calls invalid is a result too.

    Raises:
        BenchmarkError: the command failed otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "load.json", Path(folder) / "errors"
        command = [sys.executable, "-m", "afm_fx", "load", *arguments, "--json", str(path)]
        resident = []
        with (
            errors.open("w") as sink,
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink) as process,  # noqa: S603 - this interpreter
        ):
            while process.poll() is None:
                resident.append(psutil.Process(process.pid).memory_info().rss)
                time.sleep(SAMPLE_SECONDS)
        if not path.is_file():
            told = (errors.read_text().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise BenchmarkError(f"afm-fx load failed: {told}")
        # A process that just ended has no memory any more.
        return LoadResult.from_json(path.read_text(encoding="utf-8")), tuple(filter(None, resident))
