"""Peak memory of exporting a model with one very large table, and of opening and serving its file.

Run as a module, it measures one half in its own fresh process and prints one line of JSON:
``python -m benchmarks.large_file_memory export KIND ROWS WIDTH DIRECTORY``, then ``... serve ...`` with the same rest.
KIND is ``file``, one file with a free batch size, or ``buckets``, a file per batch size and one of weights for all.

Resident memory is told apart into pages of the process's own and pages of mapped files (``RssFile``): the latter are
the page cache's, shared by every process that maps the file, and given back whenever memory runs short.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import afm_fx
from benchmarks.resident_memory import mapped_bytes, peak_bytes, reset_peak, resident_bytes

FILE, TINY = "large.onnx", "tiny.onnx"
BUCKETS = (1, 256)
SERVED_BATCHES = 50
KINDS = {"file": "one file", "buckets": "a file per batch size"}


@dataclass(frozen=True)
class ExportMemory:
    """Memory around one export, in bytes.

    Attributes:
        kind: what was written.
        table_rows: rows of the model's table.
        width: width of the table.
        file_bytes: what was written.
        before_model: resident after imports and exporting a tiny model, before the model was made.
        before_export: resident just before the export, the model included.
        peak: largest resident during the export, checks included.
        seconds: time of the export.
        difference: largest difference between ONNX Runtime and torch.
    """

    kind: str
    table_rows: int
    width: int
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


class LargeTableModel(nn.Module):
    """One large table, two fields that look it up, and a small MLP."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        table = torch.empty(rows, width).uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(0))
        self.table = nn.Embedding.from_pretrained(table, freeze=False)
        self.hidden = nn.Linear(2 * width, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Predicts click probabilities, [batch, 1], for ids, int64 [batch, 2]."""
        return torch.sigmoid(self.out(torch.relu(self.hidden(self.table(ids).flatten(1)))))


def program_of(rows: int, width: int) -> afm_fx.Program:
    """The captured model."""
    return afm_fx.capture(LargeTableModel(rows, width).eval(), random_ids(rows, 4, 0))


def random_ids(rows: int, count: int, seed: int) -> Tensor:
    """Ids of the whole table, int64 [count, 2]."""
    return torch.randint(0, rows, (count, 2), generator=torch.Generator().manual_seed(seed))


def measure_export(kind: str, rows: int, width: int, directory: Path) -> ExportMemory:
    """Exports the model, weights always in a file of their own; the process should have done nothing else."""
    # A model without weight to speak of first: it loads the parts of torch and ONNX that are loaded on first use.
    _export(kind, program_of(100, width), directory / TINY)
    before_model = resident_bytes()
    program = program_of(rows, width)
    before_export = resident_bytes()
    reset_peak()
    start = time.perf_counter()
    size, difference = _export(kind, program, directory / FILE)
    return ExportMemory(
        kind=KINDS[kind],
        table_rows=rows,
        width=width,
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


def export_apart(kind: str, rows: int, width: int, directory: Path) -> ExportMemory:
    """:func:`measure_export` in a fresh process."""
    return ExportMemory(**_apart("export", kind, rows, width, directory))


def serve_apart(kind: str, rows: int, width: int, directory: Path) -> ServeMemory:
    """:func:`measure_serving` in a fresh process."""
    return ServeMemory(**_apart("serve", kind, rows, width, directory))


def _apart(half: str, kind: str, rows: int, width: int, directory: Path) -> dict[str, Any]:
    """Measures one half in a fresh process.

    Raises:
        RuntimeError: that process failed; its last words are in the message.
    """
    arguments = [half, kind, str(rows), str(width), str(directory)]
    command = [sys.executable, "-m", "benchmarks.large_file_memory", *arguments]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory failed: {done.stderr.strip()[-600:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(half: str, kind: str, rows: int, width: int, directory: Path) -> None:
    """Measures one half and prints it."""
    if half == "export":
        print(json.dumps(asdict(measure_export(kind, rows, width, directory))))
    else:
        print(json.dumps(asdict(measure_serving(kind, rows, directory))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
