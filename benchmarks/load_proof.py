"""What a server must show under load: the highest rate it holds, and that half of it holds for long."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from afm_fx.errors import BenchmarkError
from afm_fx.load_result import LoadResult
from afm_fx.loadgen_log import SUMMARY

FLAT = 0.01
"""Memory is called flat where it grows by no more than this share of itself."""

RunLoad = Callable[[Sequence[str]], LoadResult]
"""Runs ``afm-fx load`` with arguments, a JSON path not among them."""


@dataclass(frozen=True)
class LoadProof:
    """One server under load.

    Attributes:
        single_stream: one request after the other.
        offline: all requests at once.
        highest: the scenario server at the highest rate found.
        half: the same at half that rate, for long.
        half_summary: LoadGen's own summary of the latter.
    """

    single_stream: LoadResult
    offline: LoadResult
    highest: LoadResult
    half: LoadResult
    half_summary: str

    @property
    def lost(self) -> int:
        """Requests without an answer at half the rate."""
        run = self.half.runs[0]
        return run.queries - run.answered

    @property
    def within_bound(self) -> bool:
        """Whether p99 stayed within the bound at half the rate."""
        run, bound = self.half.runs[0], self.half.latency_bound_ms
        return run.p99_us is not None and bound is not None and run.p99_us <= 1e3 * bound

    @property
    def memory_flat(self) -> bool:
        """Whether the process's memory kept its size at half the rate."""
        run = self.half.runs[0]
        return run.memory_growth is not None and run.memory_growth <= FLAT * run.resident[-1]

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
            "--threads", str(settings.threads),
        ]  # fmt: skip
        base = logs / path.stem

        def load(
            scenario: str, folder: str, seconds: float, *more: str, common: list[str] = common, base: Path = base
        ) -> LoadResult:
            options = ["--scenario", scenario, "--seconds", f"{seconds:g}", "--out", str(base / folder)]
            return run([*common, *options, *more])

        bound = ("--latency-bound", f"{settings.latency_bound_ms:g}")
        single = load("single-stream", "single-stream", settings.seconds)
        offline = load("offline", "offline", settings.seconds)
        highest = load("server", "highest", settings.seconds, *bound)
        target = highest.runs[0].target_qps
        if target is None:
            raise BenchmarkError(f"no rate was found for '{name}'")
        half = load("server", "half", settings.half_seconds, *bound, "--qps", f"{target / 2:.6g}")
        summary = (base / "half" / half.runs[0].logs / SUMMARY).read_text(encoding="utf-8")
        proofs[name] = LoadProof(single, offline, highest, half, summary)
    return proofs


def run_apart(arguments: Sequence[str]) -> LoadResult:
    """Runs ``afm-fx load`` in a process of its own, so that its memory is the server's alone.

    A run that LoadGen calls invalid is a result too.

    Raises:
        BenchmarkError: the command failed otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.json"
        command = [sys.executable, "-m", "afm_fx", "load", *arguments, "--json", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this interpreter
        if not path.is_file():
            told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise BenchmarkError(f"afm-fx load failed: {told}")
        return LoadResult.from_json(path.read_text(encoding="utf-8"))
