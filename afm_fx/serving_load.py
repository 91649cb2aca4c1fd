"""Load tests of several versions of one model with MLPerf LoadGen, one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from afm_fx.benchmark import cut_batches, torch_threads, which_carry_the_batch
from afm_fx.contenders import Competitor, Contender, make_contender
from afm_fx.errors import BenchmarkError
from afm_fx.inputs import Inputs
from afm_fx.load_result import LoadResult, LoadRun, load_run
from afm_fx.loadgen import LoadTest, Scenario, run_load_test, warm_up
from afm_fx.machine import this_machine
from afm_fx.qps_search import PRECISION, confirmed_qps, highest_qps

MOST_REQUESTS, MOST_ROWS = 256, 1 << 20
"""LoadGen draws from at most so many different requests, of at most so many rows in all."""

FIRST_SHARE = 0.5
"""The search for the highest rate begins at this share of what calls one after the other reach."""

PROBE_QUERIES = 300
"""Requests of a short run at least: fewer carry no 99th percentile."""


def requests_of(batch_size: int) -> int:
    """How many different requests of so many rows there are, if the rows suffice."""
    return max(1, min(MOST_REQUESTS, MOST_ROWS // batch_size))


def load_test(
    contenders: Mapping[str, Competitor],
    inputs: Inputs,
    directory: Path,
    *,
    scenario: Scenario | str,
    batch_size: int = 1,
    seconds: float = 10.0,
    min_queries: int = 1000,
    latency_bound_ms: float | None = None,
    qps: float | None = None,
    probe_seconds: float = 2.0,
    threads: int = 1,
    seed: int = 0,
) -> LoadResult:
    """Runs LoadGen against every contender.

    In the scenario "server" it sends requests at the rate ``qps``. Where that is left out, the highest rate is sought
    at which the 99th percentile stays within the bound: by doubling and bisection in short runs, then in a run of full
    length, which LoadGen must call valid and which alone is reported; the short ones are in ``probes``. A rate that is
    5 % too high lets the queue grow by 5 % of the time, so that no run is shorter than 20 times the bound.

    Args:
        contenders: as for :func:`afm_fx.benchmark`; the first is the reference of ratios.
        inputs: rows of what the model takes (tensor, tuple or dict); cut into requests, repeated where too few.
        directory: where LoadGen's logs go, a folder for every run.
        scenario: "single-stream", "server" or "offline".
        batch_size: rows of a request.
        seconds: duration of a run at least.
        min_queries: requests of a run at least.
        latency_bound_ms: bound of the 99th percentile in milliseconds, for "server".
        qps: requests a second, for "server".
        probe_seconds: duration of the search's short runs.
        threads: threads within an operator.
        seed: of arrivals and of the order of requests.

    Raises:
        BenchmarkError: impossible settings, a contender that fails, or no rate that holds.
        BatchError: a contender does not take the inputs.
        MissingPackageError: mlcommons-loadgen is not installed.
    """
    kind = Scenario(scenario)
    test = LoadTest(kind, seconds, min_queries, qps, latency_bound_ms, seed)
    _check(contenders, test, batch_size, threads, probe_seconds)
    entrants = [make_contender(name, competitor, threads) for name, competitor in contenders.items()]
    flags = which_carry_the_batch(entrants, inputs)
    batches = cut_batches(inputs, flags, batch_size, most=requests_of(batch_size))
    prepared = [[entrant.prepare(batch) for batch in batches] for entrant in entrants]
    runs, probes = [], []
    with torch_threads(threads):
        for entrant, calls in zip(entrants, prepared, strict=True):
            tester = _Tester(entrant, calls, directory, _folder_of(entrant.name), threads)
            if kind is Scenario.SERVER and qps is None:
                runs.append(tester.highest(test, probe_seconds))
                probes += tester.probes
            else:
                runs.append(tester.run(test, kind.value))
    return LoadResult(
        machine=this_machine(),
        scenario=kind,
        batch_size=batch_size,
        requests=len(batches),
        threads=threads,
        seconds=seconds,
        min_queries=min_queries,
        latency_bound_ms=latency_bound_ms if kind is Scenario.SERVER else None,
        seed=seed,
        runs=tuple(runs),
        probes=tuple(probes),
    )


@dataclass
class _Tester:
    """Tests one contender; notes the short runs of its search."""

    entrant: Contender
    calls: list[Callable[[], Any]]
    directory: Path
    folder: str
    threads: int
    probes: list[LoadRun] = field(default_factory=list)

    def run(self, test: LoadTest, name: str) -> LoadRun:
        """One run, its logs in a folder of that name."""
        logs = Path(self.folder) / name
        try:
            outcome = run_load_test(self.calls, test, self.directory / logs, self.threads)
        except BenchmarkError as error:
            raise BenchmarkError(f"contender '{self.entrant.name}': {error}") from error
        return load_run(self.entrant.name, self.entrant.runtime, test, outcome, logs)

    def highest(self, test: LoadTest, probe_seconds: float) -> LoadRun:
        """The run of full length at the highest rate that holds."""
        with torch.inference_mode():
            first = FIRST_SHARE / warm_up(self.calls)
        confirmed: list[LoadRun] = []
        bound_us = 1e3 * (test.latency_bound_ms or 0)
        shortest = bound_us / 1e6 / PRECISION

        def holds(qps: float) -> bool:
            short = replace(test, seconds=max(probe_seconds, shortest), min_queries=PROBE_QUERIES, qps=qps)
            run = self.run(short, f"probe-{len(self.probes) + 1:02d}")
            self.probes.append(run)
            return run.p99_us is not None and run.p99_us <= bound_us

        def valid(qps: float) -> bool:
            long = replace(test, seconds=max(test.seconds, shortest), qps=qps)
            confirmed.append(self.run(long, f"server-{len(confirmed) + 1}"))
            return confirmed[-1].valid

        confirmed_qps(valid, highest_qps(holds, first))
        return confirmed[-1]


def _folder_of(name: str) -> str:
    """A contender's name as a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "contender"


def _check(
    contenders: Mapping[str, Competitor], test: LoadTest, batch_size: int, threads: int, probe_seconds: float
) -> None:
    if not contenders:
        raise BenchmarkError("there are no contenders to test")
    folders = [_folder_of(name) for name in contenders]
    if len(set(folders)) < len(folders):
        raise BenchmarkError(f"the names differ in signs only that no folder has: {', '.join(contenders)}")
    if batch_size < 1 or threads < 1 or test.min_queries < 1:
        raise BenchmarkError(
            f"batch size, threads and requests must be at least 1, got {batch_size}, {threads} and {test.min_queries}"
        )
    if not (test.seconds > 0 and probe_seconds > 0):
        raise BenchmarkError(f"durations must be positive, got {test.seconds} and {probe_seconds} s")
    server = test.scenario is Scenario.SERVER
    if server and not (test.latency_bound_ms and test.latency_bound_ms > 0):
        raise BenchmarkError("the scenario server needs a latency bound in milliseconds, say 10")
    if not server and (test.qps is not None or test.latency_bound_ms is not None):
        raise BenchmarkError("a rate and a latency bound belong to the scenario server only")
    if test.qps is not None and not test.qps > 0:
        raise BenchmarkError(f"the rate must be positive, got {test.qps}")
