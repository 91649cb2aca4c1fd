"""Peak memory and bandwidth of applying a plan to one table on disk, against a plain copy of the same bytes.

Copy and apply take turns, and before each of them the checkpoint's pages leave the cache, so that both read the disk;
both end with their bytes on the disk (fsync).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

import afm_fx
from afm_fx.io import open_checkpoint, write_table
from benchmarks.common import options
from benchmarks.common.fresh_process import run_apart
from benchmarks.common.large_table import LargeTableModel, random_ids
from benchmarks.common.resident_memory import mapped_bytes, peak_bytes, reset_peak, resident_bytes
from benchmarks.common.results import RESULTS, Part, Table, result_files
from passes.codes import factor_of
from passes.sites import SiteKind

ROWS = [6_250_000, 25_000_000, 100_000_000]
WIDTH, RANK = 32, 8
"""Width of the tables, and of the codes that they become."""

TINY = 10_000
BLOCK = 1 << 16
COPY_BYTES = 1 << 23
COLUMNS = (
    "rows", "table GB", "written GB", "copy MB/s", "apply MB/s", "apply / copy", "peak above baseline MB",
    "ONNX export MB", "ONNX file MB", "difference",
)  # fmt: skip


@dataclass(frozen=True)
class ApplyMeasurement:
    """What one table took.

    Attributes:
        rows: of the table.
        table_bytes: of the table in the checkpoint.
        written_bytes: of the folder that is made.
        baseline: bytes resident before, after the same was done to a tiny table.
        peak: largest number of bytes resident while the plan was applied, over all repeats.
        mapped: bytes of the baseline that are pages of mapped files.
        copy_seconds: of every copy of the table's file.
        apply_seconds: of every application, the capture of the model and the digests of all blocks included.
        onnx_peak: largest number of bytes resident while the ONNX file was exported over the folder and checked.
        onnx_bytes: of that ONNX file.
        difference: largest difference of the codes of random rows from those computed in memory.
    """

    rows: int
    table_bytes: int
    written_bytes: int
    baseline: int
    peak: int
    mapped: int
    copy_seconds: tuple[float, ...]
    apply_seconds: tuple[float, ...]
    onnx_peak: int
    onnx_bytes: int
    difference: float

    @property
    def copy_rate(self) -> float:
        """Bytes of the table that a plain copy takes in a second."""
        return self.table_bytes / statistics.median(self.copy_seconds)

    @property
    def apply_rate(self) -> float:
        """Bytes of the table that an application takes in a second."""
        return self.table_bytes / statistics.median(self.apply_seconds)

    @property
    def ratio(self) -> float:
        """The application's rate in the copy's: the median over the turns."""
        turns = zip(self.copy_seconds, self.apply_seconds, strict=True)
        return statistics.median(copy / apply for copy, apply in turns)


def scale_apply(
    *,
    rows: Annotated[list[int], typer.Option(help="Rows of a table; may be given several times.")] = ROWS,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of copy and apply.")] = 3,
    work_dir: options.WorkDir = None,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Measure memory and bandwidth of applying a plan to tables on disk, against a plain copy of their bytes.

    Every table is measured in a fresh process. Needs a little over twice the largest table's bytes of disk.
    """
    files = result_files(output_dir, "scale_apply", force=force)
    found = []
    for count in rows:
        with tempfile.TemporaryDirectory(dir=work_dir) as folder:
            found.append(run_apart(measure, count, repeats, Path(folder)))
        typer.echo(f"{count:,} rows: applied at {found[-1].ratio:.2f} of the copy's rate", err=True)
    parts: list[Part] = [
        f"One table of float32, {WIDTH} wide, becomes codes {RANK} wide. Copy and application take turns in one "
        "process, with one thread for its arithmetic; before each the checkpoint's pages leave the cache, and each "
        "ends with its bytes on the disk. Rates are bytes of the table in a second, medians over the turns; the "
        "application's time holds the capture of the model and a SHA-256 of every block. Peaks are resident memory, "
        "pages of mapped files included, above what the process held after the same was done to a table of 10,000 "
        "rows. The ONNX file refers to the codes' file; its export is checked against torch, which maps pages of the "
        "codes. Difference: of the codes of 1,000 rows from those encoded in memory.",
        Table(COLUMNS, [row_of(each) for each in found], left=0),
    ]
    files.write("Applying a plan to tables on disk", parts, {"tables": found})


def write_checkpoint(rows: int, folder: Path) -> Path:
    """Writes a checkpoint of :class:`LargeTableModel` in two files with an index; the table is made in blocks."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(rows)
    low_rank = torch.randn(4, WIDTH, generator=generator)

    def blocks() -> Iterator[Tensor]:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            noise = torch.rand(count, WIDTH, generator=generator)
            yield noise.sub_(0.5).mul_(0.1) + torch.rand(count, 4, generator=generator) @ low_rank

    write_table(folder / "table.safetensors", "table.weight", (rows, WIDTH), torch.float32, blocks())
    rest = {name: tensor for name, tensor in _model(TINY).state_dict().items() if name != "table.weight"}
    save_file(rest, folder / "rest.safetensors")
    weight_map = {"table.weight": "table.safetensors"} | dict.fromkeys(rest, "rest.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def plan_of(rows: int) -> afm_fx.Plan:
    """A plan of one table of that shape, with a random basis: what it keeps does not matter here."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, RANK, dtype=torch.float64, generator=generator))
    factor = factor_of(basis.mT.contiguous(), basis, torch.ones(WIDTH, dtype=torch.float64))
    site = afm_fx.planning.SitePlan("table", SiteKind.EMBEDDING, (rows, WIDTH), RANK, "", 1.0, 0.0, "afm")
    return afm_fx.Plan((site,), {"table": factor})


def _model(rows: int) -> nn.Module:
    return LargeTableModel(rows, WIDTH).eval()


def apply(checkpoint: Path, rows: int, out: Path) -> afm_fx.large_tables.AppliedFiles:
    """Applies the plan, as a user would."""

    def factory() -> tuple[nn.Module, tuple[Tensor]]:
        return _model(rows), (random_ids(rows, 4, 0),)

    return afm_fx.apply_to_files(factory, checkpoint, plan_of(rows), out)


def copy(source: Path, target: Path) -> None:
    """A plain copy that ends on the disk."""
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        shutil.copyfileobj(read, write, COPY_BYTES)
        os.fsync(write.fileno())


def forget(path: Path) -> None:
    """Takes a file's pages out of the cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(rows: int, repeats: int, directory: Path) -> ApplyMeasurement:
    """Measures one table; the process should have done nothing else."""
    torch.set_num_threads(1)
    tiny = write_checkpoint(TINY, directory / "tiny")
    afm_fx.export_onnx_over_files(apply(tiny, TINY, directory / "tiny out"))
    index = write_checkpoint(rows, directory / "checkpoint")
    table = index.parent / "table.safetensors"
    baseline, mapped = resident_bytes(), mapped_bytes()
    reset_peak()
    copies, applications, applied = [], [], None
    for turn in range(repeats):
        forget(table)
        copies.append(_timed(lambda: copy(table, directory / "copy")))
        (directory / "copy").unlink()
        forget(table)
        out = directory / f"out {turn}"
        start = time.perf_counter()
        applied = apply(index, rows, out)
        applications.append(time.perf_counter() - start)
        if turn + 1 < repeats:
            shutil.rmtree(out)
    assert applied is not None
    peak = peak_bytes()
    difference = _difference(applied, index, rows)
    reset_peak()
    report = afm_fx.export_onnx_over_files(applied)
    return ApplyMeasurement(
        rows=rows,
        table_bytes=rows * WIDTH * 4,
        written_bytes=applied.bytes,
        baseline=baseline,
        peak=peak,
        mapped=mapped,
        copy_seconds=tuple(copies),
        apply_seconds=tuple(applications),
        onnx_peak=peak_bytes(),
        onnx_bytes=report.bytes,
        difference=difference,
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _difference(applied: afm_fx.large_tables.AppliedFiles, index: Path, rows: int) -> float:
    """Of codes in the files from those of the same rows, encoded in memory."""
    stored = open_checkpoint(index)["table.weight"]
    found = open_checkpoint(applied.folder)["table.codes.weight"]
    factor, largest = plan_of(rows).factors["table"], 0.0
    for row in torch.randint(0, rows - 10, (100,), generator=torch.Generator().manual_seed(1)).tolist():
        expected = factor.encode_table(stored.rows(row, row + 10))
        largest = max(largest, float((found.rows(row, row + 10) - expected).abs().max()))
    return largest


def row_of(each: ApplyMeasurement) -> tuple[str, ...]:
    """One row of text, under ``COLUMNS``."""
    return (
        f"{each.rows:,}",
        f"{each.table_bytes / 1e9:.2f}",
        f"{each.written_bytes / 1e9:.2f}",
        f"{each.copy_rate / 1e6:.0f}",
        f"{each.apply_rate / 1e6:.0f}",
        f"{each.ratio:.2f}",
        f"{(each.peak - each.baseline) / 1e6:.0f}",
        f"{(each.onnx_peak - each.baseline) / 1e6:.0f}",
        f"{each.onnx_bytes / 1e6:.3f}",
        f"{each.difference:.1e}",
    )
