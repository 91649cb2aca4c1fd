"""What a latency benchmark measured, with everything that a reader needs to repeat it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from afm_fx.errors import FileFormatError
from afm_fx.footprint import Footprint
from afm_fx.latencies import TOO_FEW, Latencies, calls_needed
from afm_fx.machine import Machine
from afm_fx.tables import render_table

FORMAT = "afm_fx.benchmark"
VERSION = 2

PERCENTILES = ("p50_us", "p90_us", "p99_us", "p999_us")
CSV_COLUMNS = (
    "contender", "runtime", "device", "batch_size", "warmup", "calls", *PERCENTILES, "rows_per_second", "ratio",
    "ratio_low", "ratio_high", "device_only_calls", *(f"device_only_{name}" for name in PERCENTILES),
    "device_only_ratio", "load_seconds", "first_call_seconds", "host_bytes_loaded", "host_bytes_peak",
    "device_bytes_loaded", "device_bytes_peak",
)  # fmt: skip
"""Columns of :meth:`BenchmarkResult.to_csv`; what was not measured is empty."""


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
        runtime: what runs it, see :class:`afm_fx.contenders.Contender`.
        device: where: "cpu" or "cuda".
        batch_size: rows per call.
        warmup: calls before timing.
        end_to_end: times of calls that take the batch in host memory and give the outputs in host memory.
        device_only: times of calls whose inputs and outputs stay on the device, None on the CPU.
        rows_per_second: rows of all timed end-to-end calls over their total time.
        p50_range_us: smallest and largest median of the rounds, end-to-end.
        ratio: end-to-end p50 over the first contender's in the same run; below 1 is faster.
        ratio_range: smallest and largest of that ratio over the rounds.
        device_only_ratio: the same of device-only calls, None unless both have them.
    """

    contender: str
    runtime: str
    device: str
    batch_size: int
    warmup: int
    end_to_end: Latencies
    device_only: Latencies | None
    rows_per_second: float
    p50_range_us: tuple[float, float]
    ratio: float
    ratio_range: tuple[float, float]
    device_only_ratio: float | None = None

    @property
    def p50_us(self) -> float:
        """Median end-to-end time in microseconds."""
        return self.end_to_end.p50_us


@dataclass(frozen=True)
class BenchmarkResult:
    """Latencies of all contenders, with machine and settings.

    Attributes:
        machine: where it was measured.
        settings: how it was measured.
        timings: one per batch size and contender, batch sizes outermost.
        footprints: load time and memory of the contenders that could be loaded in a process of their own, where that
            was asked for.
    """

    machine: Machine
    settings: Settings
    timings: tuple[Timing, ...]
    footprints: tuple[Footprint, ...] = ()

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of the contenders, the reference of the ratios first."""
        return tuple(dict.fromkeys(timing.contender for timing in self.timings))

    @property
    def has_device(self) -> bool:
        """Whether a contender ran on a device."""
        return any(timing.device_only is not None for timing in self.timings)

    def timing(self, contender: str, batch_size: int) -> Timing:
        """The timing of one contender at one batch size.

        Raises:
            KeyError: it was not measured.
        """
        for timing in self.timings:
            if timing.contender == contender and timing.batch_size == batch_size:
                return timing
        raise KeyError(f"'{contender}' at batch {batch_size} was not measured")

    def footprint(self, contender: str) -> Footprint | None:
        """Load time and memory of a contender, None where they were not measured."""
        return next((each for each in self.footprints if each.contender == contender), None)

    def conditions(self) -> str:
        """Machine, versions and settings in two lines, and how to read the columns."""
        settings = self.settings
        lines = [
            self.machine.line(),
            f"{settings.threads} thread{'s' if settings.threads > 1 else ''}, {settings.rounds} interleaved rounds, "
            f"{settings.seconds:g} s per contender and batch size ({settings.min_repeats} to {settings.max_repeats} "
            f"calls), warm-up {settings.warmup} calls, seed {settings.seed}",
        ]
        if self.has_device:
            lines.append(
                "End-to-end includes the copies from and to host memory; device-only has inputs and outputs on the "
                "device and ends when the device is done."
            )
        else:
            lines.append("All on the CPU: there is no device to time apart, so there is one column of latencies.")
        if self.footprints:
            lines.append("Memory is what loading and running added, each contender alone in a process of its own.")
        if any(TOO_FEW in row for row in self.rows()):
            needed = ", ".join(f"p{percentile:g} {calls_needed(percentile):,}" for percentile in (90, 99, 99.9))
            lines.append(f"{TOO_FEW} is not measured or a percentile that too few calls were made for ({needed}).")
        return "\n".join(lines)

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells as text, see :attr:`columns`."""
        rows = []
        for timing in self.timings:
            device = () if not self.has_device else (TOO_FEW,) * len(PERCENTILES)
            if timing.device_only is not None:
                device = timing.device_only.cells()
            rows.append((
                f"{timing.batch_size:,}",
                timing.contender,
                timing.runtime,
                *device,
                *timing.end_to_end.cells(),
                f"{timing.rows_per_second:,.0f}",
                f"{timing.ratio:.3f}",
                f"{timing.ratio_range[0]:.2f} to {timing.ratio_range[1]:.2f}",
                f"{timing.end_to_end.calls:,}",
            ))  # fmt: skip
        return rows

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        first = self.contenders[0] if self.contenders else "first"
        names = ("p50 us", "p90 us", "p99 us", "p99.9 us")
        device = tuple(f"device-only {name}" for name in names) if self.has_device else ()
        times = tuple(f"end-to-end {name}" for name in names) if self.has_device else names
        return (
            "batch", "contender", "runtime", *device, *times, "rows/s", f"p50 / {first}", "over rounds", "calls",
        )  # fmt: skip

    def table(self) -> str:
        """The result as text."""
        parts = [render_table("", self.columns, self.rows(), left=3)]
        if self.footprints:
            parts.append(render_table("", self.footprint_columns, self.footprint_rows()))
        return "\n".join([*parts, self.conditions()])

    @property
    def footprint_columns(self) -> tuple[str, ...]:
        """Headings of load times and memory."""
        device = ("device MB loaded", "device MB peak") if self.has_device else ()
        return ("contender", "load s", "first call s", "host MB loaded", "host MB peak", *device)

    def footprint_rows(self) -> list[tuple[str, ...]]:
        """Load times and memory as text, see :attr:`footprint_columns`; what was not measured is a dash."""
        rows = []
        for each in self.footprints:
            sizes = [each.host_loaded, each.host_peak]
            if self.has_device:
                sizes += [each.device_loaded, each.device_peak]
            shown = [TOO_FEW if size is None else f"{size / 1e6:,.0f}" for size in sizes]
            rows.append((each.contender, f"{each.load_seconds:.3f}", f"{each.first_call_seconds:.3f}", *shown))
        return rows

    def to_csv(self) -> str:
        """One line per batch size and contender under ``CSV_COLUMNS``; empty cells for what was not measured."""
        sink = io.StringIO()
        writer = csv.DictWriter(sink, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for timing in self.timings:
            writer.writerow(_csv_row(timing, self.footprint(timing.contender)))
        return sink.getvalue()

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
            raise FileFormatError(
                f"a benchmark result of version {content.get('version')}; {VERSION} is read here, so measure again"
            )
        try:
            machine = dict(content["machine"])
            machine["packages"] = tuple((str(name), str(version)) for name, version in machine["packages"])
            settings = {**content["settings"], "batch_sizes": tuple(content["settings"]["batch_sizes"])}
            return BenchmarkResult(
                machine=Machine(**machine),
                settings=Settings(**settings),
                timings=tuple(_timing(each) for each in content["timings"]),
                footprints=tuple(Footprint(**each) for each in content["footprints"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"a damaged benchmark result: {error}") from error


def _timing(content: Mapping[str, Any]) -> Timing:
    device_only = content["device_only"]
    return Timing(**{
        **content,
        "end_to_end": Latencies(**content["end_to_end"]),
        "device_only": None if device_only is None else Latencies(**device_only),
        "p50_range_us": tuple(content["p50_range_us"]),
        "ratio_range": tuple(content["ratio_range"]),
    })  # fmt: skip


def _csv_row(timing: Timing, footprint: Footprint | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "contender": timing.contender,
        "runtime": timing.runtime,
        "device": timing.device,
        "batch_size": timing.batch_size,
        "warmup": timing.warmup,
        **dataclasses.asdict(timing.end_to_end),
        "rows_per_second": timing.rows_per_second,
        "ratio": timing.ratio,
        "ratio_low": timing.ratio_range[0],
        "ratio_high": timing.ratio_range[1],
        "device_only_ratio": timing.device_only_ratio,
    }
    if timing.device_only is not None:
        row |= {f"device_only_{name}": value for name, value in dataclasses.asdict(timing.device_only).items()}
    if footprint is not None:
        row |= {
            "load_seconds": footprint.load_seconds,
            "first_call_seconds": footprint.first_call_seconds,
            "host_bytes_loaded": footprint.host_loaded,
            "host_bytes_peak": footprint.host_peak,
            "device_bytes_loaded": footprint.device_loaded,
            "device_bytes_peak": footprint.device_peak,
        }
    return row
