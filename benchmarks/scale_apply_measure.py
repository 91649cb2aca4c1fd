"""Peak memory and bandwidth of applying a plan to one table on disk, against a plain copy of the same bytes.

Run as a module, it measures one table in its own fresh process and prints one line of JSON:
``python -m benchmarks.scale_apply_measure ROWS WIDTH RANK REPEATS DIRECTORY``.

Copy and apply take turns, and before each of them the checkpoint's pages leave the cache, so that both read the disk;
both end with their bytes on the disk (fsync).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import afm_fx
from afm_fx.io import open_checkpoint, write_table
from benchmarks.large_file_memory import LargeTableModel, random_ids
from benchmarks.resident_memory import mapped_bytes, peak_bytes, reset_peak, resident_bytes
from passes.codes import factor_of
from passes.sites import SiteKind

TINY = 10_000
BLOCK = 1 << 16
COPY_BYTES = 1 << 23


@dataclass(frozen=True)
class ApplyMeasurement:
    """What one table took.

    Attributes:
        rows: of the table.
        width: its columns.
        rank: of its code.
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
    width: int
    rank: int
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
    def above(self) -> int:
        """Peak above the baseline, in bytes."""
        return self.peak - self.baseline

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


def write_checkpoint(rows: int, width: int, folder: Path) -> Path:
    """Writes a checkpoint of :class:`LargeTableModel` in two files with an index; the table is made in blocks."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(rows)
    low_rank = torch.randn(4, width, generator=generator)

    def blocks() -> Iterator[Tensor]:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            noise = torch.rand(count, width, generator=generator)
            yield noise.sub_(0.5).mul_(0.1) + torch.rand(count, 4, generator=generator) @ low_rank

    write_table(folder / "table.safetensors", "table.weight", (rows, width), torch.float32, blocks())
    rest = {name: tensor for name, tensor in _model(TINY, width).state_dict().items() if name != "table.weight"}
    save_file(rest, folder / "rest.safetensors")
    weight_map = {"table.weight": "table.safetensors"} | dict.fromkeys(rest, "rest.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def plan_of(rows: int, width: int, rank: int) -> afm_fx.Plan:
    """A plan of one table of that shape, with a random basis: what it keeps does not matter here."""
    basis, _ = torch.linalg.qr(
        torch.randn(width, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    factor = factor_of(basis.mT.contiguous(), basis, torch.ones(width, dtype=torch.float64))
    site = afm_fx.planning.SitePlan("table", SiteKind.EMBEDDING, (rows, width), rank, "", 1.0, 0.0, "afm")
    return afm_fx.Plan((site,), {"table": factor})


def _model(rows: int, width: int) -> nn.Module:
    return LargeTableModel(rows, width).eval()


def apply(checkpoint: Path, rows: int, width: int, rank: int, out: Path) -> afm_fx.large_tables.AppliedFiles:
    """Applies the plan, as a user would."""

    def factory() -> tuple[nn.Module, tuple[Tensor]]:
        return _model(rows, width), (random_ids(rows, 4, 0),)

    return afm_fx.apply_to_files(factory, checkpoint, plan_of(rows, width, rank), out)


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


def measure(rows: int, width: int, rank: int, repeats: int, directory: Path) -> ApplyMeasurement:
    """Measures one table; the process should have done nothing else."""
    torch.set_num_threads(1)
    tiny = write_checkpoint(TINY, width, directory / "tiny")
    afm_fx.export_onnx_over_files(apply(tiny, TINY, width, rank, directory / "tiny out"))
    index = write_checkpoint(rows, width, directory / "checkpoint")
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
        applied = apply(index, rows, width, rank, out)
        applications.append(time.perf_counter() - start)
        if turn + 1 < repeats:
            shutil.rmtree(out)
    assert applied is not None
    peak = peak_bytes()
    difference = _difference(applied, index, rows, width, rank)
    reset_peak()
    report = afm_fx.export_onnx_over_files(applied)
    return ApplyMeasurement(
        rows=rows,
        width=width,
        rank=rank,
        table_bytes=rows * width * 4,
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


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _difference(applied: afm_fx.large_tables.AppliedFiles, index: Path, rows: int, width: int, rank: int) -> float:
    """Of codes in the files from those of the same rows, encoded in memory."""
    stored = open_checkpoint(index)["table.weight"]
    found = open_checkpoint(applied.folder)["table.codes.weight"]
    factor, largest = plan_of(rows, width, rank).factors["table"], 0.0
    for row in torch.randint(0, rows - 10, (100,), generator=torch.Generator().manual_seed(1)).tolist():
        expected = factor.encode_table(stored.rows(row, row + 10))
        largest = max(largest, float((found.rows(row, row + 10) - expected).abs().max()))
    return largest


def measure_apart(rows: int, width: int, rank: int, repeats: int, directory: Path) -> ApplyMeasurement:
    """:func:`measure` in a fresh process.

    Raises:
        RuntimeError: that process failed; its last words are in the message.
    """
    arguments = [str(rows), str(width), str(rank), str(repeats), str(directory)]
    command = [sys.executable, "-m", "benchmarks.scale_apply_measure", *arguments]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        raise RuntimeError(f"measuring {rows:,} rows failed: {done.stderr.strip()[-600:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found |= {key: tuple(found[key]) for key in ("copy_seconds", "apply_seconds")}
    return ApplyMeasurement(**found)


if __name__ == "__main__":
    counts, folder = [int(each) for each in sys.argv[1:5]], Path(sys.argv[5])
    print(json.dumps(asdict(measure(counts[0], counts[1], counts[2], counts[3], folder))))
