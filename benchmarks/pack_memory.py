"""Peak memory and time of packing a DeepFM with large tables.

Run as a module, it measures in its own fresh process and prints one line of JSON:
``python -m benchmarks.pack_memory ROWS LARGEST_OVER_SMALLEST FREE_SOURCES``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import afm_fx
from afm_fx.runtime import pack
from benchmarks.criteo_shape import CriteoShape
from benchmarks.resident_memory import peak_bytes, reset_peak, resident_bytes


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


def measure_here(rows: int, largest_over_smallest: float, *, free_sources: bool) -> PackMemory:
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


def measure_apart(rows: int, largest_over_smallest: float, *, free_sources: bool) -> PackMemory:
    """Measures in a fresh process.

    Raises:
        RuntimeError: that process failed; its last words are in the message.
    """
    arguments = [str(rows), str(largest_over_smallest), str(int(free_sources))]
    command = [sys.executable, "-m", "benchmarks.pack_memory", *arguments]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory failed: {done.stderr.strip()[-600:]}")
    return PackMemory(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(measure_here(int(sys.argv[1]), float(sys.argv[2]), free_sources=bool(int(sys.argv[3]))))))
