"""What a latency benchmark measured, with everything that a reader needs to repeat it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from afm_fx.errors import FileFormatError
from afm_fx.machine import Machine
from afm_fx.tables import render_table

FORMAT = "afm_fx.benchmark"
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How a benchmark was run; the fields are the arguments of :func:`afm_fx.benchmark.benchmark`."""

    batch_sizes: tuple[int, ...]
    threads: int
    seconds: float
    min_repeats: int
    max_repeats: int
    rounds: int
    warmup: int
    seed: int


@dataclass(frozen=True)
class Timing:
    """One contender at one batch size.

    Attributes:
        contender: its name.
        runtime: "ONNX Runtime" or "torch".
        batch_size: rows per call.
        warmup: calls before timing.
        repeats: timed calls.
        p50_us: median time of a call in microseconds.
        p90_us: 90th percentile in microseconds.
        p99_us: 99th percentile in microseconds.
        rows_per_second: rows of all timed calls over their total time.
        ratio: p50 over the first contender's p50 in the same run; below 1 is faster.
        ratio_range: smallest and largest of that ratio over the rounds.
    """

    contender: str
    runtime: str
    batch_size: int
    warmup: int
    repeats: int
    p50_us: float
    p90_us: float
    p99_us: float
    rows_per_second: float
    ratio: float
    ratio_range: tuple[float, float]


@dataclass(frozen=True)
class BenchmarkResult:
    """Latencies of all contenders, with machine and settings.

    Attributes:
        machine: where it was measured.
        settings: how it was measured.
        timings: one per batch size and contender, batch sizes outermost.
    """

    machine: Machine
    settings: Settings
    timings: tuple[Timing, ...]

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of the contenders, the reference of the ratios first."""
        return tuple(dict.fromkeys(timing.contender for timing in self.timings))

    def timing(self, contender: str, batch_size: int) -> Timing:
        """The timing of one contender at one batch size.

        Raises:
            KeyError: it was not measured.
        """
        for timing in self.timings:
            if timing.contender == contender and timing.batch_size == batch_size:
                return timing
        raise KeyError(f"'{contender}' at batch {batch_size} was not measured")

    def conditions(self) -> str:
        """Machine, versions and settings in two lines."""
        settings = self.settings
        return (
            f"{self.machine.line()}\n{settings.threads} thread{'s' if settings.threads > 1 else ''}, "
            f"{settings.rounds} interleaved rounds, {settings.seconds:g} s per contender and batch size "
            f"({settings.min_repeats} to {settings.max_repeats} calls), warm-up {settings.warmup} calls, "
            f"seed {settings.seed}"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells as text, see :attr:`columns`."""
        return [
            (
                f"{timing.batch_size:,}",
                timing.contender,
                timing.runtime,
                f"{timing.p50_us:,.0f}",
                f"{timing.p90_us:,.0f}",
                f"{timing.p99_us:,.0f}",
                f"{timing.rows_per_second:,.0f}",
                f"{timing.ratio:.3f}",
                f"{timing.ratio_range[0]:.2f} to {timing.ratio_range[1]:.2f}",
                f"{timing.repeats:,}",
            )
            for timing in self.timings
        ]

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        first = self.contenders[0] if self.contenders else "first"
        return (
            "batch", "contender", "runtime", "p50 us", "p90 us", "p99 us", "rows/s", f"p50 / {first}", "over rounds",
            "calls",
        )  # fmt: skip

    def table(self) -> str:
        """The result as text."""
        return f"{render_table('', self.columns, self.rows(), left=3)}\n{self.conditions()}"

    def to_json(self) -> str:
        """The result as JSON, read back by :meth:`from_json`."""
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> BenchmarkResult:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: the text is damaged, or of another kind or version.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise FileFormatError(f"not a benchmark result: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FileFormatError("not a benchmark result: the format is not named in it")
        if content.get("version") != VERSION:
            raise FileFormatError(f"a benchmark result of version {content.get('version')}; {VERSION} is read here")
        try:
            machine = dict(content["machine"])
            machine["packages"] = tuple((str(name), str(version)) for name, version in machine["packages"])
            settings = {**content["settings"], "batch_sizes": tuple(content["settings"]["batch_sizes"])}
            timings = [{**each, "ratio_range": tuple(each["ratio_range"])} for each in content["timings"]]
            return BenchmarkResult(
                machine=Machine(**machine),
                settings=Settings(**settings),
                timings=tuple(Timing(**each) for each in timings),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"a damaged benchmark result: {error}") from error
