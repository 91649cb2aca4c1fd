"""Runs one test of MLPerf LoadGen (``mlcommons-loadgen``, the extra ``loadgen``) against prepared calls.

LoadGen decides when queries come, times them and judges the run; what it writes is read back from its log. A query is
one request: a batch of rows that was prepared before, as a server has parsed a request before it runs it.

Who answers: in the scenarios SingleStream and Offline the thread in which LoadGen issues queries, for nothing is
issued meanwhile. In Server a worker thread of its own, one query at a time in the order of arrival, for an issuing
thread that computes would hold back the arrivals that come meanwhile and so hide the waiting. Threads within an
operator come on top of these two, and all of them share the cores that the process may use; none is pinned. The
hand-over to the worker takes some tens of microseconds in Python; LoadGen counts them as latency.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from afm_fx.errors import BenchmarkError, MissingPackageError
from afm_fx.loadgen_log import LoadGenLog, read_log
from afm_fx.resident_memory import accounted, resident_bytes

WARMUP_CALLS = 20
SAMPLE_SECONDS = 0.25
"""Between two looks at resident memory."""

MARGIN = 1.3
"""LoadGen makes its queries before the test; this many times what the warm-up's speed makes likely."""


class Scenario(StrEnum):
    """LoadGen's scenarios that a ranking service meets."""

    SINGLE_STREAM = "single-stream"
    """The next request comes when the last one was answered."""

    SERVER = "server"
    """Requests come at random, as a Poisson process, and must be answered within a bound."""

    OFFLINE = "offline"
    """All requests are there at once."""


@dataclass(frozen=True)
class LoadTest:
    """One test.

    Attributes:
        scenario: how requests come.
        seconds: duration at least.
        min_queries: requests at least.
        qps: requests a second that the scenario Server sends.
        latency_bound_ms: what the 99th percentile must stay within in the scenario Server, in milliseconds.
        seed: of the arrival times and of the order of requests.
    """

    scenario: Scenario
    seconds: float
    min_queries: int
    qps: float | None = None
    latency_bound_ms: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class LoadTestOutcome:
    """What came of one test.

    Attributes:
        log: what LoadGen says.
        issued: queries that LoadGen handed over.
        answered: queries that were answered.
        resident: bytes of resident memory of the process during the test, in order; empty where the system does not
            tell.
    """

    log: LoadGenLog
    issued: int
    answered: int
    resident: tuple[int, ...]


class _System:
    """LoadGen's system under test: answers queries by making calls."""

    def __init__(self, loadgen: Any, calls: Sequence[Callable[[], Any]], threads: int) -> None:
        self._loadgen = loadgen
        self._calls = calls
        self._threads = threads
        self._queue: queue.SimpleQueue[tuple[list[int], list[int]] | None] = queue.SimpleQueue()
        self.issued = 0
        self.answered = 0
        self.error: Exception | None = None

    def answer_now(self, ids: list[int], indices: list[int]) -> None:
        """Answers queries in the thread that issues them."""
        self.issued += len(ids)
        self._answer(ids, indices)

    def enqueue(self, ids: list[int], indices: list[int]) -> None:
        """Hands queries to the worker."""
        self.issued += len(ids)
        self._queue.put((ids, indices))

    def _answer(self, ids: list[int], indices: list[int]) -> None:
        """Answers queries one after the other; where a call fails, the rest is answered without calls."""
        for response, index in zip(ids, indices, strict=True):
            if self.error is None:
                try:
                    self._calls[index]()
                except Exception as error:  # noqa: BLE001 - a runtime may raise anything, and LoadGen waits for an answer
                    self.error = error
            self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(response, 0, 0)])
            self.answered += 1

    def work(self) -> None:
        """The worker: answers what was handed over until :meth:`stop`."""
        torch.set_num_threads(self._threads)  # OpenMP keeps this number per thread
        with torch.inference_mode():
            while (query := self._queue.get()) is not None:
                self._answer(*query)

    def stop(self) -> None:
        """Ends the worker once all queries are answered."""
        self._queue.put(None)

    def flush(self) -> None:
        """LoadGen says that no more queries come; nothing here waits for more."""


def run_load_test(
    calls: Sequence[Callable[[], Any]], test: LoadTest, directory: Path, threads: int = 1
) -> LoadTestOutcome:
    """Warms up, runs one test, and reads what LoadGen wrote.

    Args:
        calls: one per request of LoadGen's library of samples.
        test: what to run.
        directory: where LoadGen's logs go; made where it is missing.
        threads: torch's threads within an operator, in the worker too.

    Raises:
        MissingPackageError: mlcommons-loadgen is not installed.
        BenchmarkError: a call failed, or the test is impossible.
        FileFormatError: LoadGen left no results.
    """
    try:
        import mlperf_loadgen  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingPackageError("load tests need MLPerf LoadGen: install afm-fx[loadgen]") from error
    if test.scenario is Scenario.SERVER and not (test.qps and test.latency_bound_ms):
        raise BenchmarkError("the scenario server needs a rate of queries and a latency bound, both above 0")
    directory.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        typical = warm_up(calls)
        system = _System(mlperf_loadgen, calls, threads)
        worker = threading.Thread(target=system.work, name="afm-fx worker", daemon=True)
        worker.start()
        issue = system.enqueue if test.scenario is Scenario.SERVER else system.answer_now
        sut = mlperf_loadgen.ConstructFastSUT(issue, system.flush)
        # The requests were prepared before; LoadGen's library has nothing to load or to drop.
        qsl = mlperf_loadgen.ConstructQSL(len(calls), len(calls), lambda _: None, lambda _: None)
        collected = gc.isenabled()
        gc.disable()
        try:
            with _MemorySampler() as memory:
                mlperf_loadgen.StartTestWithLogSettings(
                    sut, qsl, _settings(mlperf_loadgen, test, typical), _logs(mlperf_loadgen, directory)
                )
        finally:
            if collected:
                gc.enable()
            system.stop()
            worker.join()
            mlperf_loadgen.DestroyQSL(qsl)
            mlperf_loadgen.DestroyFastSUT(sut)
    if system.error is not None:
        reason = " ".join(str(system.error).split())[:300]
        raise BenchmarkError(f"a call failed under load: {type(system.error).__name__}: {reason}") from system.error
    return LoadTestOutcome(read_log(directory), system.issued, system.answered, tuple(memory.samples))


def warm_up(calls: Sequence[Callable[[], Any]]) -> float:
    """Seconds of a typical call, after some that are not counted.

    Raises:
        BenchmarkError: a call fails.
    """
    spent = []
    try:
        for turn in range(2 * WARMUP_CALLS):
            started = time.perf_counter()
            calls[turn % len(calls)]()
            spent.append(time.perf_counter() - started)
    except Exception as error:  # a runtime may raise anything
        reason = " ".join(str(error).split())[:300]
        raise BenchmarkError(f"a call fails: {type(error).__name__}: {reason}") from error
    return sorted(spent[WARMUP_CALLS:])[WARMUP_CALLS // 2]


def _settings(loadgen: Any, test: LoadTest, typical: float) -> Any:
    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(1000 * test.seconds))
    settings.min_query_count = test.min_queries
    for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(settings, name, test.seed)
    if test.scenario is Scenario.SINGLE_STREAM:
        settings.scenario = loadgen.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = max(1, round(1e9 * typical / MARGIN))
    elif test.scenario is Scenario.OFFLINE:
        settings.scenario = loadgen.TestScenario.Offline
        settings.offline_expected_qps = MARGIN / typical
    else:
        settings.scenario = loadgen.TestScenario.Server
        settings.server_target_qps = test.qps
        settings.server_target_latency_ns = round(1e6 * (test.latency_bound_ms or 0))
        settings.server_target_latency_percentile = 0.99
    return settings


def _logs(loadgen: Any, directory: Path) -> Any:
    logs = loadgen.LogSettings()
    logs.log_output.outdir = str(directory)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    return logs


class _MemorySampler:
    """Looks at the process's resident memory every now and then, from a thread of its own."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="afm-fx memory", daemon=True)

    def __enter__(self) -> _MemorySampler:
        if accounted():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self) -> None:
        self.samples.append(resident_bytes())
        while not self._over.wait(SAMPLE_SECONDS):
            self.samples.append(resident_bytes())
