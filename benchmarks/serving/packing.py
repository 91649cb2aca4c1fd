"""The models of deepctr-torch in the shape of click logs, packed and not packed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

import afm_fx
from afm_fx.errors import BenchmarkError
from afm_fx.measure import Measurement, benchmark
from afm_fx.runtime import ExportReport, export_onnx
from benchmarks.common import options
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.ctr_models import MODELS, MULTI_TASK, ModelConfig, build_model, check_model_name
from benchmarks.common.results import RESULTS, Part, Table, conditions, result_files
from benchmarks.datasets import CtrDataset, Rows, SparseField

COVERED = [*MODELS, *MULTI_TASK]
BATCHES = [1, 64, 1024]
KINDS = {
    "gathers": ("Gather",), "products": ("Gemm", "MatMul", "Einsum"), "casts": ("Cast",), "slices": ("Slice", "Split"),
    "concats": ("Concat",),
}  # fmt: skip
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


def packing(
    *,
    model: Annotated[list[str], typer.Option(help="Model; may be given several times.")] = COVERED,
    batch_size: Annotated[
        list[int], typer.Option(help="Rows per call; may be given several times; 0 to count only.")
    ] = BATCHES,
    seconds: Annotated[float, typer.Option(help="Time per model, version and batch size.")] = 1.0,
    table_rows: options.TableRows = 100_000,
    output_dir: options.OutputDir = RESULTS,
    force: options.Force = False,
) -> None:
    """Count the operators of every model before and after packing, and time both in ONNX Runtime.

    26 tables of width 16, 13 dense features.
    """
    files = result_files(output_dir, "packing", force=force)
    for name in model:
        check_model_name(name, COVERED)
    sizes = tuple(size for size in batch_size if size)
    shape = PackingShape(CriteoShape(total_rows=table_rows), batch_sizes=sizes, seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        measured = list(shape.measure(Path(folder), model))
    content = [
        {
            "model": each.name,
            "operators_before": dict(each.before.operators),
            "operators_after": dict(each.after.operators),
            "max_abs_difference": each.after.max_abs_difference,
            "timing": each.timing,
        }
        for each in measured
    ]
    files.write("Packing the models of deepctr-torch", parts(sizes, measured), {"models": content})


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

    def measure(self, folder: Path, names: Sequence[str]) -> Iterator[PackedModel]:
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


def columns(sizes: tuple[int, ...]) -> tuple[str, ...]:
    """Heads of the table."""
    return ("model", "operators", *KINDS, *(f"faster at batch {size}" for size in sizes))


def rows(sizes: tuple[int, ...], measured: list[PackedModel]) -> list[tuple[str, ...]]:
    """One row of text per model: counts before and after, and the ratio of medians."""
    result = []
    for each in measured:
        before, after = dict(each.before.operators), dict(each.after.operators)
        counts = [
            f"{sum(before.get(kind, 0) for kind in kinds)} -> {sum(after.get(kind, 0) for kind in kinds)}"
            for kinds in KINDS.values()
        ]
        timing = each.timing
        timed = () if timing is None else timing.batch_sizes
        ratios = [_speed_up(timing, size) if timing is not None and size in timed else "fails" for size in sizes]
        result.append((each.name, f"{each.before.node_count} -> {each.after.node_count}", *counts, *ratios))
    return result


def _speed_up(timing: Measurement, size: int) -> str:
    before, after = (timing.timing(name, size).p50_us for name in ("as it is", "packed"))
    return f"{before / after:.2f}x"


def parts(sizes: tuple[int, ...], measured: list[PackedModel]) -> list[Part]:
    """The page."""
    timing = measured[0].timing
    return [
        "Operators of the ONNX files before and after packing. Medians of both were taken in one interleaved run.",
        *([] if timing is None else [conditions(timing)]),
        Table(columns(sizes), rows(sizes, measured)),
        *(f"{each.name} at batch 1: {FAILS_AT_ONE_ROW[each.name]}." for each in measured if _fails(each, sizes)),
    ]


def _fails(model: PackedModel, sizes: tuple[int, ...]) -> bool:
    """Whether a batch of one row was asked for and could not be timed for a reason of the model's own."""
    timed = () if model.timing is None else model.timing.batch_sizes
    return 1 in sizes and 1 not in timed and model.name in FAILS_AT_ONE_ROW
