"""A measurement: latencies of several contenders, taken in one interleaved run, with everything to repeat it."""

from __future__ import annotations

from dataclasses import dataclass

from afm_fx.errors import BenchmarkError
from afm_fx.io import Machine, from_json, render_table, to_json
from afm_fx.measure.latencies import TOO_FEW, Latencies, calls_needed

VERSION = 4
"""Of the JSON."""


@dataclass(frozen=True)
class Timing:
    """One contender at one batch size.

    Attributes:
        runtime: what runs it, see :class:`afm_fx.measure.contenders.Contender`.
        rows_per_second: rows of all timed calls over their total time.
        ratio: p50 over the first contender's; below 1 is faster.
        ratio_range: smallest and largest of that ratio over the rounds.
    """

    contender: str
    runtime: str
    batch_size: int
    latencies: Latencies
    rows_per_second: float
    ratio: float
    ratio_range: tuple[float, float]

    @property
    def p50_us(self) -> float:
        """Median time of a call in microseconds."""
        return self.latencies.p50_us


@dataclass(frozen=True)
class Measurement:
    """Latencies of all contenders; the settings are those of :func:`afm_fx.benchmark`.

    Attributes:
        timings: batch sizes outermost.
    """

    machine: Machine
    batch_sizes: tuple[int, ...]
    threads: int
    seconds: float
    rounds: int
    timings: tuple[Timing, ...]

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of the contenders, the reference of the ratios first."""
        return tuple(dict.fromkeys(timing.contender for timing in self.timings))

    def timing(self, contender: str, batch_size: int) -> Timing:
        """The timing of one contender at one batch size.

        Raises:
            BenchmarkError: it was not measured.
        """
        for timing in self.timings:
            if (timing.contender, timing.batch_size) == (contender, batch_size):
                return timing
        raise BenchmarkError(f"'{contender}' at batch {batch_size} was not measured")

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        return (
            "batch", "contender", "runtime", "p50 us", "p90 us", "p99 us", "p99.9 us", "rows/s",
            f"p50 / {self.contenders[0]}", "over rounds", "calls",
        )  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells as text, see :attr:`columns`."""
        return [
            (
                f"{timing.batch_size:,}",
                timing.contender,
                timing.runtime,
                *timing.latencies.cells(),
                f"{timing.rows_per_second:,.0f}",
                f"{timing.ratio:.3f}",
                f"{timing.ratio_range[0]:.2f} to {timing.ratio_range[1]:.2f}",
                f"{timing.latencies.calls:,}",
            )
            for timing in self.timings
        ]

    def conditions(self) -> str:
        """Machine, versions and settings in two lines, and how to read the columns."""
        lines = [
            self.machine.line(),
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.rounds} interleaved rounds, "
            f"{self.seconds:g} s per contender and batch size",
        ]
        if any(TOO_FEW in row for row in self.rows()):
            needed = ", ".join(f"p{percentile:g} {calls_needed(percentile):,}" for percentile in (90, 99, 99.9))
            lines.append(f"{TOO_FEW} is a percentile that too few calls were made for ({needed}).")
        return "\n".join(lines)

    def table(self) -> str:
        """The result as text."""
        return f"{render_table('', self.columns, self.rows(), left=3)}\n{self.conditions()}"

    def to_json(self) -> str:
        """The result as JSON, read back by :meth:`from_json`."""
        return to_json(self, VERSION)

    @staticmethod
    def from_json(text: str) -> Measurement:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: the text is damaged, or of another kind or version.
        """
        return from_json(text, Measurement, VERSION, "the measurement")
