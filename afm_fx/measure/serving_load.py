"""Load tests of several versions of one model with MLPerf LoadGen, one after the other."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from afm_fx.errors import BenchmarkError
from afm_fx.io import Machine, from_json, render_table, this_machine, to_json
from afm_fx.measure.benchmark import cut_batches, torch_threads
from afm_fx.measure.contenders import Call, Competitor, Contender, make_contender, which_carry_the_batch
from afm_fx.measure.loadgen import LoadRun, LoadTest, run_load_test, warm_up
from afm_fx.program import Inputs

MOST_REQUESTS, MOST_ROWS = 256, 1 << 20
"""LoadGen draws from at most so many different requests, of at most so many rows in all."""

FIRST_SHARE = 0.5
"""The search for the highest rate begins at this share of what calls one after the other reach."""

PROBE_SECONDS, PROBE_QUERIES = 2.0, 300
"""Of a short run at least: fewer requests carry no 99th percentile."""

PRECISION = 0.05
"""The search ends where the lowest rate that failed is at most so much above the highest that held."""

STEP_BACK = 0.9
"""A rate that held in a short run and not in the long one is lowered to this share of itself."""

MOST_PROBES, MOST_CONFIRMATIONS = 16, 12

VERSION = 2
"""Of the JSON of results."""


@dataclass(frozen=True)
class LoadResult:
    """Load tests of several contenders.

    Attributes:
        batch_size: rows of a request.
        requests: different requests that LoadGen drew from.
        runs: one per contender.
    """

    machine: Machine
    batch_size: int
    requests: int
    test: LoadTest
    runs: tuple[LoadRun, ...]

    @property
    def valid(self) -> bool:
        """Whether LoadGen calls every run valid and no request was lost."""
        return all(not run.invalid and run.lost == 0 for run in self.runs)

    def table(self) -> str:
        """The result as text, how the tests were run, and why a run is not valid."""
        first = self.runs[0]
        columns = (
            "contender", "QPS", f"QPS / {first.contender}", "rows/s", "p50 us", "p90 us", "p99 us", "p99.9 us",
            "requests", "lost", "verdict",
        )  # fmt: skip
        rows = [
            (
                run.contender,
                f"{run.qps:,.0f}" if run.qps >= 100 else f"{run.qps:.3g}",
                f"{run.qps / first.qps:.2f}",
                f"{run.qps * self.batch_size:,.0f}",
                *run.latencies.cells(),
                f"{run.queries:,}",
                f"{run.lost:,}",
                "INVALID" if run.invalid else "VALID",
            )
            for run in self.runs
        ]
        test = self.test
        lines = [
            render_table("", columns, rows, text=("verdict",)),
            self.machine.line(),
            f"MLPerf LoadGen, random arrivals (Server), p99 within {test.latency_bound_ms:g} ms; a request has "
            f"{self.batch_size:,} rows and is one of {self.requests:,}; {test.seconds:g} s and {test.min_queries:,} "
            f"requests at least; {test.threads} thread{'s' if test.threads > 1 else ''} within an "
            "operator, one worker thread, LoadGen's issuing thread beside it",
            *(f"{run.contender}: {run.invalid}" for run in self.runs if run.invalid),
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The result as JSON."""
        return to_json(self, VERSION)

    @staticmethod
    def from_json(text: str) -> LoadResult:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: the text is damaged, or of another kind or version.
        """
        return from_json(text, LoadResult, VERSION, "the load result")


def requests_of(batch_size: int) -> int:
    """How many different requests of so many rows there are, if the rows suffice."""
    return max(1, min(MOST_REQUESTS, MOST_ROWS // batch_size))


def load_test(
    contenders: Mapping[str, Competitor],
    inputs: Inputs,
    directory: Path,
    *,
    latency_bound_ms: float,
    qps: float | None = None,
    batch_size: int = 1,
    seconds: float = 10.0,
    min_queries: int = 1000,
    threads: int = 1,
) -> LoadResult:
    """Lets LoadGen send requests at random times to every contender.

    It sends them at the rate ``qps``. Where that is left out, the highest rate is sought at which the 99th percentile
    stays within the bound: by doubling and bisection in short runs, then in a run of full length, which LoadGen must
    call valid and which alone is reported.

    Args:
        contenders: as for :func:`afm_fx.benchmark`; the first is the reference of ratios.
        inputs: rows of what the model takes (tensor, tuple or dict); cut into requests, repeated where too few.
        directory: where LoadGen's logs go, a folder for every run.
        latency_bound_ms: this and the other settings are those of :class:`afm_fx.measure.loadgen.LoadTest`.
        batch_size: rows of a request.

    Raises:
        BenchmarkError: impossible settings, a contender that fails, or no rate that holds.
        BatchError: a contender does not take the inputs.
        MissingPackageError: mlcommons-loadgen is not installed.
    """
    test = LoadTest(latency_bound_ms, qps, seconds, min_queries, threads)
    folders = [re.sub(r"[^\w.-]+", "-", name).strip(".-") or "contender" for name in contenders]
    if not contenders:
        raise BenchmarkError("there are no contenders to test")
    if len(set(folders)) < len(folders):
        raise BenchmarkError(f"the names differ in signs only that no folder has: {', '.join(contenders)}")
    if batch_size < 1:
        raise BenchmarkError(f"a request has at least 1 row, got {batch_size}")
    entrants = [make_contender(name, competitor, threads) for name, competitor in contenders.items()]
    flags = which_carry_the_batch(entrants, inputs)
    batches = cut_batches(inputs, flags, batch_size, most=requests_of(batch_size))
    prepared = [[entrant.prepare(batch) for batch in batches] for entrant in entrants]
    runs = []
    with torch_threads(threads):
        for entrant, calls, folder in zip(entrants, prepared, folders, strict=True):
            if qps is None:
                runs.append(_highest(entrant, calls, test, directory / folder))
            else:
                runs.append(run_load_test(entrant, calls, test, directory / folder / "server"))
    return LoadResult(this_machine(), batch_size, len(batches), test, tuple(runs))


def _highest(contender: Contender, calls: Sequence[Call], test: LoadTest, directory: Path) -> LoadRun:
    """The run of full length at the highest rate that holds; logs of all runs in folders of their own."""
    # A rate that is 5 % too high lets the queue grow by 5 % of the time: by the bound after 20 times the bound.
    shortest = test.latency_bound_ms / 1e3 / PRECISION
    probe = replace(test, seconds=max(PROBE_SECONDS, shortest), min_queries=PROBE_QUERIES)
    full = replace(test, seconds=max(test.seconds, shortest))
    probes = itertools.count(1)

    def holds(qps: float) -> bool:
        run = run_load_test(contender, calls, replace(probe, qps=qps), directory / f"probe-{next(probes):02d}")
        return run.latencies.p99_us is not None and run.latencies.p99_us <= 1e3 * test.latency_bound_ms

    qps = highest_qps(holds, FIRST_SHARE / warm_up(contender, calls))
    for attempt in range(1, MOST_CONFIRMATIONS + 1):
        run = run_load_test(contender, calls, replace(full, qps=qps), directory / f"server-{attempt}")
        if not run.invalid:
            return run
        qps *= STEP_BACK
    raise BenchmarkError(
        f"short runs held, but no long run at {qps / STEP_BACK:.3g} queries a second or more was valid; is the machine "
        "busy with something else, or is the run too short (--seconds)?"
    )


def highest_qps(holds: Callable[[float], bool], first: float) -> float:
    """The highest rate that holds, within ``PRECISION``: by doubling or halving, then by bisection.

    Args:
        holds: a short run at a rate in queries per second; whether the bound held.

    Raises:
        BenchmarkError: none of the rates held.
    """
    low, high, qps = 0.0, math.inf, first
    for _ in range(MOST_PROBES):
        if holds(qps):
            low = qps
        else:
            high = qps
        if low > 0 and high <= low * (1 + PRECISION):
            break
        qps = high / 2 if low == 0 else 2 * low if math.isinf(high) else math.sqrt(low * high)
    if low == 0:
        raise BenchmarkError(f"not even {high:.3g} queries a second stay within the latency bound; raise the bound")
    return low
