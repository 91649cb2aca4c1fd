"""Runs one test of MLPerf LoadGen (``mlcommons-loadgen``, the extra ``loadgen``) against prepared calls.

The scenario is LoadGen's Server: requests come at random, as a Poisson process, and the 99th percentile of the time
from arrival to answer must stay within a bound. LoadGen decides when they come, times them and judges the run; what it
writes is read back from its log, and no number is computed beside it. A query is one request: a batch of rows that was
prepared before, as a server has parsed a request before it runs it.

A worker thread answers, one query at a time in the order of arrival, for an issuing thread that computes would hold
back the arrivals that come meanwhile and so hide the waiting. Threads within an operator come on top of these two, and
all of them share the cores that the process may use; none is pinned. The hand-over to the worker takes some tens of
microseconds in Python; LoadGen counts them as latency.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afm_fx.errors import BenchmarkError, FileFormatError, MissingPackageError
from afm_fx.measure.benchmark import failure_of, no_garbage_collection
from afm_fx.measure.contenders import Call, Contender
from afm_fx.measure.latencies import Latencies

WARMUP_CALLS = 20

SEED = 0
"""Of the arrival times and of the order of requests: all contenders get the same."""

DETAIL, SUMMARY = "mlperf_log_detail.txt", "mlperf_log_summary.txt"


@dataclass(frozen=True)
class LoadTest:
    """One test.

    Attributes:
        latency_bound_ms: what the 99th percentile must stay within, in milliseconds.
        qps: requests a second; None for the highest rate that holds the bound.
        seconds: duration at least.
        min_queries: requests at least.
    """

    latency_bound_ms: float
    qps: float | None
    seconds: float
    min_queries: int
    threads: int

    def __post_init__(self) -> None:
        for name in ("latency_bound_ms", "qps", "seconds", "min_queries", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BenchmarkError(f"a load test needs {name} above 0, got {value}")


@dataclass(frozen=True)
class LoadRun:
    """One run of LoadGen, in its own numbers.

    Attributes:
        invalid: why LoadGen calls the run invalid (too short, too few requests, the latency bound not held, or not
            with confidence); empty where it does not.
        answered: requests that were answered; fewer would be lost ones.
        target_qps: requests a second that were sent, on average.
    """

    contender: str
    runtime: str
    invalid: str
    queries: int
    answered: int
    target_qps: float
    qps: float
    latencies: Latencies
    logs: str

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.queries - self.answered


class _System:
    """LoadGen's system under test: a worker that answers queries by making calls."""

    def __init__(self, loadgen: Any, calls: Sequence[Call], threads: int) -> None:
        self._loadgen = loadgen
        self._calls = calls
        self._threads = threads
        self.queue: queue.SimpleQueue[tuple[list[int], list[int]] | None] = queue.SimpleQueue()
        self.answered = 0
        self.error: Exception | None = None

    def work(self) -> None:
        """Answers what comes through the queue until None does; where a call fails, the rest without calls."""
        torch.set_num_threads(self._threads)  # OpenMP keeps this number per thread
        with torch.inference_mode():
            while (query := self.queue.get()) is not None:
                for response, index in zip(*query, strict=True):
                    if self.error is None:
                        try:
                            self._calls[index]()
                        except Exception as error:  # noqa: BLE001 - a runtime may raise anything, and LoadGen waits
                            self.error = error
                    self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(response, 0, 0)])
                    self.answered += 1


def run_load_test(contender: Contender, calls: Sequence[Call], test: LoadTest, directory: Path) -> LoadRun:
    """Warms up, runs one test, and reads what LoadGen wrote.

    Args:
        calls: of the contender, one per request of LoadGen's library of samples.
        test: what to run; its rate is given.
        directory: where LoadGen's logs go; made where it is missing.

    Raises:
        MissingPackageError: mlcommons-loadgen is not installed.
        BenchmarkError: a call failed.
        FileFormatError: LoadGen left no results.
    """
    try:
        import mlperf_loadgen  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingPackageError("load tests need MLPerf LoadGen: install afm-fx[loadgen]") from error
    directory.mkdir(parents=True, exist_ok=True)
    warm_up(contender, calls)
    system = _System(mlperf_loadgen, calls, test.threads)
    worker = threading.Thread(target=system.work, name="afm-fx worker", daemon=True)
    worker.start()
    sut = mlperf_loadgen.ConstructFastSUT(lambda *query: system.queue.put(query), lambda: None)
    # The requests were prepared before; LoadGen's library has nothing to load or to drop.
    qsl = mlperf_loadgen.ConstructQSL(len(calls), len(calls), lambda _: None, lambda _: None)
    try:
        with no_garbage_collection():
            mlperf_loadgen.StartTestWithLogSettings(sut, qsl, *_settings(mlperf_loadgen, test, directory))
    finally:
        system.queue.put(None)
        worker.join()
        mlperf_loadgen.DestroyQSL(qsl)
        mlperf_loadgen.DestroyFastSUT(sut)
    if system.error is not None:
        raise failure_of(contender, system.error) from system.error
    return read_run(contender, test, directory, system.answered)


def warm_up(contender: Contender, calls: Sequence[Call]) -> float:
    """Seconds of a typical call, after some that are not counted.

    Raises:
        BenchmarkError: a call fails.
    """
    spent = []
    try:
        with torch.inference_mode():
            for turn in range(2 * WARMUP_CALLS):
                started = time.perf_counter()
                calls[turn % len(calls)]()
                spent.append(time.perf_counter() - started)
    except Exception as error:  # a runtime may raise anything
        raise failure_of(contender, error) from error
    return sorted(spent[WARMUP_CALLS:])[WARMUP_CALLS // 2]


def _settings(loadgen: Any, test: LoadTest, directory: Path) -> tuple[Any, Any]:
    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.scenario = loadgen.TestScenario.Server
    settings.server_target_qps = test.qps
    settings.server_target_latency_ns = round(1e6 * test.latency_bound_ms)
    settings.server_target_latency_percentile = 0.99
    settings.min_duration_ms = max(1, round(1000 * test.seconds))
    settings.min_query_count = test.min_queries
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = SEED
    logs = loadgen.LogSettings()
    logs.log_output.outdir = str(directory)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    return settings, logs


def read_run(contender: Contender, test: LoadTest, directory: Path, answered: int) -> LoadRun:
    """The run whose logs lie in a directory, in LoadGen's numbers.

    Raises:
        FileFormatError: there is no log, it breaks off before the results, or it lacks one of them.
    """
    values, reasons = read_log(directory)
    if values["result_validity"] != "VALID":
        told = str(values.get("result_invalid_reason", ""))
        if not values.get("early_stopping_met", True):
            told += f" {values.get('early_stopping_result', '')}"
        reasons.append(" ".join(told.replace("*", " ").split()) or "LoadGen does not say why")
    try:
        queries = round(values["result_query_count"])
        latencies = Latencies.of(
            queries, lambda percentile: values[f"result_{percentile:.2f}_percentile_latency_ns"] / 1e3
        )
        qps = values["result_completed_samples_per_sec"]
    except KeyError as error:
        raise FileFormatError(f"LoadGen's log has no {error}; another version of mlcommons-loadgen wrote it") from error
    return LoadRun(
        contender.name, contender.runtime, " ".join(reasons), queries, answered, test.qps or qps, qps, latencies,
        directory.as_posix(),
    )  # fmt: skip


def read_log(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """The last value for every key of LoadGen's detailed log, and what it calls errors.

    Raises:
        FileFormatError: there is no log, or it breaks off before the results.
    """
    path = directory / DETAIL
    if not path.is_file():
        raise FileFormatError(f"LoadGen left no '{path}'")
    values: dict[str, Any] = {}
    errors = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        mark, _, text = line.partition(" ")
        if mark != ":::MLLOG":
            continue
        try:
            entry = json.loads(text)
        except json.JSONDecodeError:
            continue  # LoadGen does not escape what it quotes, say in names of files
        values[entry["key"]] = entry["value"]
        if entry.get("metadata", {}).get("is_error"):
            errors.append(str(entry["value"]))
    if "result_validity" not in values:
        raise FileFormatError(f"'{path}' breaks off before the results")
    return values, errors
