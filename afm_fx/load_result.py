"""What load tests with MLPerf LoadGen showed, with everything that a reader needs to repeat them."""

from __future__ import annotations

from dataclasses import dataclass

from afm_fx.documents import from_json, to_json
from afm_fx.loadgen import LoadRun, LoadTest
from afm_fx.machine import Machine
from afm_fx.tables import render_table

VERSION = 2
"""Of the JSON."""


@dataclass(frozen=True)
class LoadResult:
    """Load tests of several contenders.

    Attributes:
        machine: where they ran.
        batch_size: rows of a request.
        requests: different requests that LoadGen drew from.
        test: what was asked for.
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
        """The result as text."""
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
        return f"{render_table('', columns, rows, text=('verdict',))}\n{self.conditions()}"

    def conditions(self) -> str:
        """How the tests were run, and why a run is not valid."""
        test = self.test
        lines = [
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
