"""A measurement: latencies of several contenders, taken in one interleaved run, with everything to repeat it."""

from __future__ import annotations

from dataclasses import dataclass

from afm_fx.documents import from_json, to_json
from afm_fx.latencies import TOO_FEW, Latencies, calls_needed
from afm_fx.machine import Machine
from afm_fx.tables import render_table

VERSION = 3
"""Of the JSON."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Timing:
    """One contender at one batch size.

    Attributes:
        runtime: what runs it, see :class:`afm_fx.contenders.Contender`.
        on_device: whether inputs and outputs stay on the device; else calls take the batch in host memory and give
            the outputs in host memory (end-to-end).
        rows_per_second: rows of all timed calls over their total time.
        p50_range_us: smallest and largest median of the rounds.
        ratio: p50 over the first contender's of the same kind; below 1 is faster. None where that has none.
        ratio_range: smallest and largest of that ratio over the rounds.
    """

    contender: str
    runtime: str
    batch_size: int
    on_device: bool
    latencies: Latencies
    rows_per_second: float
    p50_range_us: Range
    ratio: float | None
    ratio_range: Range | None

    @property
    def p50_us(self) -> float:
        """Median time of a call in microseconds."""
        return self.latencies.p50_us


@dataclass(frozen=True)
class Measurement:
    """Latencies of all contenders.

    Attributes:
        machine: where it was measured.
        batch_sizes: rows per call.
        threads: threads within an operator.
        seconds: time spent on each contender at each batch size, about.
        rounds: turns of each contender at each batch size.
        seed: of the order of contenders within rounds.
        timings: batch sizes outermost.
    """

    machine: Machine
    batch_sizes: tuple[int, ...]
    threads: int
    seconds: float
    rounds: int
    seed: int
    timings: tuple[Timing, ...]

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of the contenders, the reference of the ratios first."""
        return tuple(dict.fromkeys(timing.contender for timing in self.timings))

    @property
    def has_device(self) -> bool:
        """Whether a contender ran on a device."""
        return any(timing.on_device for timing in self.timings)

    def timing(self, contender: str, batch_size: int, *, on_device: bool = False) -> Timing:
        """The timing of one contender at one batch size.

        Raises:
            KeyError: it was not measured.
        """
        for timing in self.timings:
            if (timing.contender, timing.batch_size, timing.on_device) == (contender, batch_size, on_device):
                return timing
        raise KeyError(f"'{contender}' at batch {batch_size} was not measured")

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        return (
            "batch", "contender", "runtime", *(("call",) if self.has_device else ()), "p50 us", "p90 us", "p99 us",
            "p99.9 us", "rows/s", f"p50 / {self.contenders[0]}", "over rounds", "calls",
        )  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells as text, see :attr:`columns`."""
        rows = []
        for timing in self.timings:
            low, high = timing.ratio_range or (0.0, 0.0)
            rows.append((
                f"{timing.batch_size:,}",
                timing.contender,
                timing.runtime,
                *(("device-only" if timing.on_device else "end-to-end",) if self.has_device else ()),
                *timing.latencies.cells(),
                f"{timing.rows_per_second:,.0f}",
                TOO_FEW if timing.ratio is None else f"{timing.ratio:.3f}",
                TOO_FEW if timing.ratio is None else f"{low:.2f} to {high:.2f}",
                f"{timing.latencies.calls:,}",
            ))  # fmt: skip
        return rows

    def conditions(self) -> str:
        """Machine, versions and settings in two lines, and how to read the columns."""
        lines = [
            self.machine.line(),
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.rounds} interleaved rounds, "
            f"{self.seconds:g} s per contender and batch size, seed {self.seed}",
        ]
        if self.has_device:
            lines.append(
                "End-to-end includes the copies from and to host memory; device-only has inputs and outputs on the "
                "device and ends when the device is done."
            )
        if any(TOO_FEW in row for row in self.rows()):
            needed = ", ".join(f"p{percentile:g} {calls_needed(percentile):,}" for percentile in (90, 99, 99.9))
            lines.append(f"{TOO_FEW} is not measured or a percentile that too few calls were made for ({needed}).")
        return "\n".join(lines)

    def table(self) -> str:
        """The result as text."""
        table = render_table("", self.columns, self.rows(), left=4 if self.has_device else 3)
        return f"{table}\n{self.conditions()}"

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
