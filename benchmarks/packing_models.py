"""The models of deepctr-torch in the shape of click logs, packed and not packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import afm_fx
from afm_fx.errors import BenchmarkError
from afm_fx.measure import Measurement, benchmark
from afm_fx.runtime import ExportReport, export_onnx
from benchmarks.criteo_shape import CriteoShape
from benchmarks.ctr_models import MODELS, MULTI_TASK, ModelConfig, build_model
from benchmarks.datasets import CtrDataset, Rows, SparseField

COVERED = (*MODELS, *MULTI_TASK)
FAILS_AT_ONE_ROW = {
    "DCNMix": "deepctr-torch calls `x.squeeze()` without an axis, so a batch of one row loses its batch axis and the "
    "model fails on it in torch, dense or packed",
}
"""Models whose own code fails on a batch of one row, and why."""


@dataclass(frozen=True)
class PackedModel:
    """One model, as torch exports it and packed.

    Attributes:
        name: the model's.
        before: its export.
        after: the export of the packed program.
        timing: both, interleaved; None where nothing was timed.
    """

    name: str
    before: ExportReport
    after: ExportReport
    timing: Measurement | None


@dataclass(frozen=True)
class PackingShape:
    """What is built and timed.

    Attributes:
        shape: fields and tables.
        hidden: widths of the MLP.
        batch_sizes: rows per call; none to count operators only.
        seconds: per model, version and batch size.
        seed: of weights and traffic.
    """

    shape: CriteoShape
    hidden: tuple[int, ...] = (400, 400, 400)
    batch_sizes: tuple[int, ...] = (1, 64, 1024)
    seconds: float = 1.0
    seed: int = 0

    def dataset(self) -> CtrDataset:
        """The columns, without rows."""
        nothing = Rows(torch.empty((0, 0)), torch.empty(0))
        sparse = tuple(SparseField(f"C{field}", rows) for field, rows in enumerate(self.shape.table_rows, start=1))
        dense = tuple(f"I{field}" for field in range(1, self.shape.dense_fields + 1))
        return CtrDataset(sparse, dense, nothing, nothing, nothing)

    def measure(self, folder: Path, names: tuple[str, ...] = COVERED) -> Iterator[PackedModel]:
        """Exports every model both ways, checked against torch, and times the files side by side."""
        config = ModelConfig(self.shape.width, self.hidden, seed=self.seed)
        for name in names:
            model = build_model(name, self.dataset(), config).eval()
            program = afm_fx.capture(model, self.shape.batch(4, self.seed))
            files = {version: folder / f"{name}-{version}.onnx" for version in ("as it is", "packed")}
            before = export_onnx(program, files["as it is"])
            after = export_onnx(afm_fx.pack(program).program, files["packed"])
            timing = self._timed(files)
            yield PackedModel(name, before, after, timing)
            for file in files.values():
                file.unlink()

    def _timed(self, files: dict[str, Path]) -> Measurement | None:
        """Both files side by side, without a batch of one row where the model fails on it, packed or not."""
        for sizes in (self.batch_sizes, tuple(size for size in self.batch_sizes if size > 1)):
            if not sizes:
                return None
            rows = self.shape.batch(4 * max(sizes), self.seed + 1)
            try:
                return benchmark(files, rows, batch_sizes=sizes, threads=1, seconds=self.seconds)
            except BenchmarkError:
                if 1 not in sizes:
                    raise
        return None
