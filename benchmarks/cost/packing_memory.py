"""Peak memory and time of packing a DeepFM with large tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

import afm_fx
from afm_fx.runtime import pack
from benchmarks.common import options
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.fresh_process import run_apart
from benchmarks.common.resident_memory import peak_bytes, reset_peak, resident_bytes
from benchmarks.common.results import RESULTS, Part, Table, result_files

COLUMNS = (
    "largest table", "sources", "tables GB", "before / tables", "peak / tables", "after / tables",
    "bound / tables", "capture s", "pack s",
)  # fmt: skip
RATIOS = [1.0, 7_500.0, 100_000.0]
"""Tables of one size, a largest table of 30 % as in the Criteo display-advertising data, and one of 37 %."""


@dataclass(frozen=True)
class PackMemory:
    """Memory around one packing, in bytes.

    Attributes:
        rows: rows of all embedding tables together; each has a linear term's table beside it.
        width: width of the embedding tables.
        largest_share: the largest table's share of the rows.
        free_sources: whether the tables of the program given were let go one by one.
        table_bytes: all tables of the program given, linear terms included.
        before_model: resident after imports and packing a tiny model, before the model was made.
        before_pack: resident just before packing, the program given included.
        peak: largest resident during packing.
        after_pack: resident afterwards, both programs included.
        capture_seconds: time of the capture.
        pack_seconds: time of packing.
    """

    rows: int
    width: int
    largest_share: float
    free_sources: bool
    table_bytes: int
    before_model: int
    before_pack: int
    peak: int
    after_pack: int
    capture_seconds: float
    pack_seconds: float

    @property
    def whole(self) -> float:
        """Peak above the process without a model, in sizes of the tables: the tables themselves are 1 of it."""
        return (self.peak - self.before_model) / self.table_bytes

    @property
    def before(self) -> float:
        """Resident before packing, in the same sizes: above 1 is what building the model left behind."""
        return (self.before_pack - self.before_model) / self.table_bytes

    @property
    def kept(self) -> float:
        """Resident afterwards, in the same sizes."""
        return (self.after_pack - self.before_model) / self.table_bytes

    @property
    def bound(self) -> float:
        """The least that a peak can be, in the same sizes: all tables, the row terms, and what is there twice."""
        twice = self.largest_share if self.free_sources else 1.0
        return 1 + 1 / (self.width + 1) + twice


def packing_memory(
    *,
    rows: Annotated[int, typer.Option(help="Rows of all 26 embedding tables together.")] = 34_000_000,
    largest_over_smallest: Annotated[
        list[float], typer.Option(help="Rows of the largest over the smallest table; several times.")
    ] = RATIOS,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Measure peak memory and time of packing a DeepFM with 26 tables 16 wide and as many linear terms.

    Every case runs in a fresh process, with and without letting the tables go one by one (`free_sources`). It needs
    three times the tables' memory.
    """
    files = result_files(output_dir, "packing_memory", force=force)
    cases = [(ratio, free) for free in (True, False) for ratio in largest_over_smallest]
    measured = [run_apart(measure, rows, ratio, free_sources=free) for ratio, free in cases]
    parts: list[Part] = [
        "Resident memory of a fresh process above what it holds without a model, in sizes of all tables (embeddings "
        "and linear terms); the program given is counted and usable afterwards.",
        "A tensor is freed as a whole, so at the end of copying the largest table both it and its copy are there: with "
        "sources let go no order of copies stays below `1 + largest table's share`. The linear terms come on top: "
        "packing stores what a row adds to the logit instead of its linear weight, which cannot be a view of the "
        "packed table and stays in the program given. That is the column of bounds; with sources kept it is 2 and "
        "the new terms.",
        Table(COLUMNS, memory_rows(measured), left=2),
    ]
    files.write("Memory of packing large tables", parts, {"cases": measured})


def measure(rows: int, largest_over_smallest: float, *, free_sources: bool) -> PackMemory:
    """Measures in this process, which should have done nothing else before."""
    # A model without weight to speak of first: it loads the parts of torch that are loaded on first use.
    small = CriteoShape(total_rows=1_000, largest_over_smallest=largest_over_smallest)
    pack(afm_fx.capture(small.deepfm(0), small.batch(4, 0)), free_sources=free_sources)
    before_model = resident_bytes()
    shape = CriteoShape(total_rows=rows, largest_over_smallest=largest_over_smallest)
    model, batch = shape.deepfm(0), small.batch(4, 0)
    start = time.perf_counter()
    program = afm_fx.capture(model, batch)
    captured = time.perf_counter()
    before_pack = resident_bytes()
    reset_peak()
    ready = time.perf_counter()
    packed = pack(program, free_sources=free_sources)
    seconds = time.perf_counter() - ready
    peak = peak_bytes()
    if packed.report.after.lookups != 1:
        raise RuntimeError(f"{packed.report.after.lookups} lookups are left, the tables were not packed into one")
    return PackMemory(
        rows=rows,
        width=shape.width,
        largest_share=max(shape.table_rows) / rows,
        free_sources=free_sources,
        table_bytes=rows * (shape.width + 1) * 4,
        before_model=before_model,
        before_pack=before_pack,
        peak=peak,
        after_pack=resident_bytes(),
        capture_seconds=captured - start,
        pack_seconds=seconds,
    )


def memory_rows(measured: Sequence[PackMemory]) -> list[tuple[str, ...]]:
    """One row of text per case, under ``COLUMNS``."""
    return [
        (
            f"{each.largest_share:.0%}",
            "let go" if each.free_sources else "kept",
            f"{each.table_bytes / 1e9:.2f}",
            f"{each.before:.2f}",
            f"{each.whole:.2f}",
            f"{each.kept:.2f}",
            f"{each.bound:.2f}",
            f"{each.capture_seconds:.1f}",
            f"{each.pack_seconds:.1f}",
        )
        for each in measured
    ]
