"""Peak memory of exporting a model with one very large table, and of opening and serving its file.

Resident memory is told apart into pages of the process's own and pages of mapped files (``RssFile``): the latter are
the page cache's, shared by every process that maps the file, and given back whenever memory runs short.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import afm_fx
from benchmarks.common import options
from benchmarks.common.fresh_process import run_apart
from benchmarks.common.large_table import LargeTableModel, random_ids
from benchmarks.common.resident_memory import mapped_bytes, peak_bytes, reset_peak, resident_bytes
from benchmarks.common.results import RESULTS, Part, Table, result_files

WIDTH = 16
FILE, TINY = "large.onnx", "tiny.onnx"
BUCKETS = (1, 256)
SERVED_BATCHES = 50
KINDS = {"file": "one file", "buckets": "a file per batch size"}
"""One file with a free batch size, or a file per batch size and one of weights for all."""

EXPORT_COLUMNS = ("exported", "file GB", "model / file", "peak / file", "seconds", "largest difference to torch")
SERVE_COLUMNS = (
    "served", "file GB", "peak while opening / file", "own memory / file", "mapped pages / file", "seconds to open",
)  # fmt: skip


@dataclass(frozen=True)
class ExportMemory:
    """Memory around one export, in bytes.

    Attributes:
        kind: what was written.
        table_rows: rows of the model's table.
        file_bytes: what was written.
        before_model: resident after imports and exporting a tiny model, before the model was made.
        before_export: resident just before the export, the model included.
        peak: largest resident during the export, checks included.
        seconds: time of the export.
        difference: largest difference between ONNX Runtime and torch.
    """

    kind: str
    table_rows: int
    file_bytes: int
    before_model: int
    before_export: int
    peak: int
    seconds: float
    difference: float

    @property
    def whole(self) -> float:
        """Peak above the process without a model, in sizes of the file: the model itself is 1 of it."""
        return (self.peak - self.before_model) / self.file_bytes


@dataclass(frozen=True)
class ServeMemory:
    """Memory of one served file, in bytes.

    Attributes:
        kind: what was opened.
        file_bytes: the files.
        before: resident after serving a tiny file, before the large one was opened.
        mapped_before: of which pages of mapped files.
        peak_open: largest resident while it was opened and warmed up.
        after_open: resident then.
        mapped_open: of which pages of mapped files.
        after_serving: resident after it served random rows of the whole table.
        mapped_serving: of which pages of mapped files.
        open_seconds: time to open and warm up.
    """

    kind: str
    file_bytes: int
    before: int
    mapped_before: int
    peak_open: int
    after_open: int
    mapped_open: int
    after_serving: int
    mapped_serving: int
    open_seconds: float

    @property
    def opened(self) -> float:
        """Peak while opening above the process before, in sizes of the files."""
        return (self.peak_open - self.before) / self.file_bytes

    @property
    def own(self) -> float:
        """Memory of the process's own after serving, in the same sizes."""
        own, own_before = self.after_serving - self.mapped_serving, self.before - self.mapped_before
        return (own - own_before) / self.file_bytes

    @property
    def mapped(self) -> float:
        """Pages of mapped files after serving that were not resident before, in the same sizes."""
        return (self.mapped_serving - self.mapped_before) / self.file_bytes


def large_file(
    *,
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = 40_000_000,
    work_dir: options.WorkDir = None,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Measure memory of exporting and of serving a model with one large table.

    Every case runs in a fresh process. It needs a little over twice the table's memory and as much disk.
    """
    files = result_files(output_dir, "large_file", force=force)
    exports, served = [], []
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=work_dir) as folder:
            exports.append(run_apart(measure_export, kind, rows, Path(folder)))
            served.append(run_apart(measure_serving, kind, rows, Path(folder)))
    parts: list[Part] = [
        f"A model with one table of {rows:,} rows x {WIDTH} in float32. Each line was measured in a fresh process that "
        "had exported or served a tiny model before; memory is resident memory above what it held then, in sizes of "
        "the file. The model itself is 1 of it while exporting.",
        Table(EXPORT_COLUMNS, export_rows(exports)),
        "A served file's weights are mapped: their pages belong to the page cache, are shared by every process that "
        "maps the file, and only those that were read, with their neighbours, are resident. Own memory is what the "
        "process holds beside them, after 50 batches of 256 random rows.",
        Table(SERVE_COLUMNS, serve_rows(served)),
    ]
    files.write(
        "Memory of exporting and serving a file of more than 2 GB", parts, {"exports": exports, "served": served}
    )


def measure_export(kind: str, rows: int, directory: Path) -> ExportMemory:
    """Exports the model, weights always in a file of their own; the process should have done nothing else."""
    # A model without weight to speak of first: it loads the parts of torch and ONNX that are loaded on first use.
    _export(kind, _program(100), directory / TINY)
    before_model = resident_bytes()
    program = _program(rows)
    before_export = resident_bytes()
    reset_peak()
    start = time.perf_counter()
    size, difference = _export(kind, program, directory / FILE)
    return ExportMemory(
        kind=KINDS[kind],
        table_rows=rows,
        file_bytes=size,
        before_model=before_model,
        before_export=before_export,
        peak=peak_bytes(),
        seconds=time.perf_counter() - start,
        difference=difference,
    )


def _export(kind: str, program: afm_fx.Program, path: Path) -> tuple[int, float]:
    """Bytes written and the largest difference from torch."""
    if kind == "file":
        report = afm_fx.export_onnx(program, path, force=True, external_data_bytes=0)
        return report.bytes, report.max_abs_difference or 0.0
    buckets = afm_fx.export_onnx_buckets(program, path, BUCKETS, force=True)
    files = {file for each in buckets for file in (each.path, each.data_path) if file is not None}
    size = sum(file.stat().st_size for file in files)
    return size, max(each.max_abs_difference or 0.0 for each in buckets)


def measure_serving(kind: str, rows: int, directory: Path) -> ServeMemory:
    """Opens and serves what :func:`measure_export` wrote; the process should have done nothing else."""
    buckets = BUCKETS if kind == "file" else None
    afm_fx.Session(directory / TINY, buckets=buckets).run(random_ids(100, BUCKETS[-1], 1))
    path = directory / FILE
    size = sum(each.stat().st_size for each in directory.glob(f"{path.stem}.*"))
    before, mapped_before = resident_bytes(), mapped_bytes()
    reset_peak()
    start = time.perf_counter()
    session = afm_fx.Session(path, buckets=buckets)
    seconds = time.perf_counter() - start
    peak, after_open, mapped_open = peak_bytes(), resident_bytes(), mapped_bytes()
    for seed in range(SERVED_BATCHES):
        session.run(random_ids(rows, BUCKETS[-1], seed))
    return ServeMemory(
        kind=KINDS[kind],
        file_bytes=size,
        before=before,
        mapped_before=mapped_before,
        peak_open=peak,
        after_open=after_open,
        mapped_open=mapped_open,
        after_serving=resident_bytes(),
        mapped_serving=mapped_bytes(),
        open_seconds=seconds,
    )


def _program(rows: int) -> afm_fx.Program:
    return afm_fx.capture(LargeTableModel(rows, WIDTH).eval(), random_ids(rows, 4, 0))


def export_rows(exports: Sequence[ExportMemory]) -> list[tuple[str, ...]]:
    """One row of text per export, under ``EXPORT_COLUMNS``."""
    return [
        (
            each.kind,
            f"{each.file_bytes / 1e9:.2f}",
            f"{(each.before_export - each.before_model) / each.file_bytes:.2f}",
            f"{each.whole:.2f}",
            f"{each.seconds:.1f}",
            f"{each.difference:.1e}",
        )
        for each in exports
    ]


def serve_rows(served: Sequence[ServeMemory]) -> list[tuple[str, ...]]:
    """One row of text per served file, under ``SERVE_COLUMNS``."""
    return [
        (
            each.kind,
            f"{each.file_bytes / 1e9:.2f}",
            f"{each.opened:.3f}",
            f"{each.own:.3f}",
            f"{each.mapped:.3f}",
            f"{each.open_seconds:.2f}",
        )
        for each in served
    ]
