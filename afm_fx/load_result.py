"""What load tests with MLPerf LoadGen found, with everything that a reader needs to repeat them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path

from afm_fx.errors import FileFormatError
from afm_fx.latencies import calls_needed, shown_us
from afm_fx.loadgen import LoadTest, LoadTestOutcome, Scenario
from afm_fx.machine import Machine
from afm_fx.tables import render_table

FORMAT = "afm_fx.load"
VERSION = 1

_RATE = {
    Scenario.SINGLE_STREAM: "result_qps_with_loadgen_overhead",
    Scenario.SERVER: "result_completed_samples_per_sec",
    Scenario.OFFLINE: "result_samples_per_second",
}
"""LoadGen's key for the requests a second that were answered."""


@dataclass(frozen=True)
class LoadRun:
    """One run of LoadGen, in its own numbers.

    Attributes:
        contender: name of what answered.
        runtime: what ran it.
        valid: LoadGen's verdict.
        reason: why it is not valid.
        queries: requests that LoadGen issued.
        answered: requests that were answered; fewer would be lost ones.
        target_qps: rate of the scenario Server, None in others.
        qps: requests answered a second.
        mean_us: mean latency in microseconds.
        p50_us: median latency in microseconds.
        p90_us: 90th percentile; this and the next two are None where there were too few requests, see
            :func:`afm_fx.latencies.calls_needed`.
        p99_us: 99th percentile.
        p999_us: 99.9th percentile.
        max_us: the longest.
        resident: bytes of resident memory of the process during the run, in order.
        logs: directory of LoadGen's logs, relative to the directory of all.
    """

    contender: str
    runtime: str
    valid: bool
    reason: str
    queries: int
    answered: int
    target_qps: float | None
    qps: float
    mean_us: float
    p50_us: float
    p90_us: float | None
    p99_us: float | None
    p999_us: float | None
    max_us: float
    resident: tuple[int, ...]
    logs: str

    @property
    def memory_growth(self) -> int | None:
        """Bytes by which the median resident memory of the run's last third exceeds that of its middle third.

        The first third is left out: there the arrivals of the whole run lie ready and buffers find their size. None
        where fewer than 9 samples were taken.
        """
        third = len(self.resident) // 3
        if third < 3:
            return None
        middle, last = self.resident[third : 2 * third], self.resident[2 * third :]
        return sorted(last)[len(last) // 2] - sorted(middle)[third // 2]


@dataclass(frozen=True)
class LoadResult:
    """Load tests of several contenders.

    Attributes:
        machine: where they ran.
        scenario: how requests came.
        batch_size: rows of a request.
        requests: different requests that LoadGen drew from.
        threads: threads within an operator.
        seconds: duration of a run at least.
        min_queries: requests of a run at least.
        latency_bound_ms: what the 99th percentile had to stay within (scenario Server), in milliseconds.
        seed: of arrivals and of the order of requests.
        runs: one per contender.
        probes: short runs of the search for the highest rate.
    """

    machine: Machine
    scenario: Scenario
    batch_size: int
    requests: int
    threads: int
    seconds: float
    min_queries: int
    latency_bound_ms: float | None
    seed: int
    runs: tuple[LoadRun, ...]
    probes: tuple[LoadRun, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether LoadGen calls every run valid and no request was lost."""
        return all(run.valid and run.answered == run.queries for run in self.runs)

    def run(self, contender: str) -> LoadRun:
        """The run of one contender.

        Raises:
            KeyError: it had none.
        """
        for run in self.runs:
            if run.contender == contender:
                return run
        raise KeyError(f"'{contender}' was not run")

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        first = self.runs[0].contender if self.runs else "first"
        times = () if self.scenario is Scenario.OFFLINE else ("p50 us", "p90 us", "p99 us", "p99.9 us")
        return ("contender", "runtime", "QPS", f"QPS / {first}", "rows/s", *times, "requests", "lost", "verdict")

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells as text, see :attr:`columns`."""
        rows = []
        for run in self.runs:
            times = (run.p50_us, run.p90_us, run.p99_us, run.p999_us)
            rows.append((
                run.contender,
                run.runtime,
                f"{run.qps:,.0f}" if run.qps >= 100 else f"{run.qps:.3g}",
                f"{run.qps / self.runs[0].qps:.2f}",
                f"{run.qps * self.batch_size:,.0f}",
                *(() if self.scenario is Scenario.OFFLINE else map(shown_us, times)),
                f"{run.queries:,}",
                f"{run.queries - run.answered:,}",
                "VALID" if run.valid else "INVALID",
            ))  # fmt: skip
        return rows

    def conditions(self) -> str:
        """How the tests were run."""
        bound = "" if self.latency_bound_ms is None else f", p99 within {self.latency_bound_ms:g} ms"
        lines = [
            self.machine.line(),
            f"MLPerf LoadGen, {self.scenario.value}{bound}; a request has {self.batch_size:,} rows and is one of "
            f"{self.requests:,}; {self.seconds:g} s and {self.min_queries:,} requests at least, seed {self.seed}; "
            f"{self.threads} thread{'s' if self.threads > 1 else ''} within an operator, "
            + (
                "one worker thread, LoadGen's issuing thread beside it"
                if self.scenario is Scenario.SERVER
                else "requests answered in LoadGen's issuing thread"
            ),
        ]
        if self.scenario is Scenario.OFFLINE:
            lines.append("All requests come at once: a latency would be the wait for those before, and is left out.")
        lines += [f"{run.contender}: {run.reason}" for run in self.runs if run.reason]
        return "\n".join(lines)

    def table(self) -> str:
        """The result as text."""
        return f"{render_table('', self.columns, self.rows(), left=2, text=('verdict',))}\n{self.conditions()}"

    def to_json(self) -> str:
        """The result as JSON."""
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> LoadResult:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: the text is damaged, or of another kind or version.
        """
        try:
            content = json.loads(text)
            if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
                raise FileFormatError(f"no load result of version {VERSION}")
            machine = dict(content["machine"])
            machine["packages"] = tuple((str(name), str(version)) for name, version in machine["packages"])
            runs = {
                key: tuple(LoadRun(**{**each, "resident": tuple(each["resident"])}) for each in content[key])
                for key in ("runs", "probes")
            }
            scenario = Scenario(content["scenario"])
            return LoadResult(**{**content, **runs, "machine": Machine(**machine), "scenario": scenario})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"a damaged load result: {error}") from error

    def to_csv(self) -> str:
        """One line per contender; empty cells for what was not measured."""
        sink = io.StringIO()
        shown = [field.name for field in dataclasses.fields(LoadRun) if field.name != "resident"]
        writer = csv.DictWriter(sink, ["scenario", "batch_size", *shown], lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for run in self.runs:
            row = {"scenario": self.scenario.value, "batch_size": self.batch_size}
            writer.writerow({**row, **dataclasses.asdict(run)})
        return sink.getvalue()


def load_run(contender: str, runtime: str, test: LoadTest, outcome: LoadTestOutcome, logs: Path) -> LoadRun:
    """A run in LoadGen's numbers.

    Raises:
        FileFormatError: its log lacks one of them.
    """
    log = outcome.log
    # Offline, LoadGen counts its one query of all requests.
    queries = outcome.issued if test.scenario is Scenario.OFFLINE else round(log.number("result_query_count"))
    tail = [
        log.percentile_us(percentile) if queries >= calls_needed(percentile) else None
        for percentile in (90.0, 99.0, 99.9)
    ]
    return LoadRun(
        contender=contender,
        runtime=runtime,
        valid=log.valid,
        reason=log.reason,
        queries=queries,
        answered=outcome.answered,
        target_qps=test.qps if test.scenario is Scenario.SERVER else None,
        qps=log.number(_RATE[test.scenario]),
        mean_us=log.number("result_mean_latency_ns") / 1e3,
        p50_us=log.percentile_us(50.0),
        p90_us=tail[0],
        p99_us=tail[1],
        p999_us=tail[2],
        max_us=log.number("result_max_latency_ns") / 1e3,
        resident=outcome.resident,
        logs=logs.as_posix(),
    )
