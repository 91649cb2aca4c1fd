"""The versions of one model that the latency benchmark compares, exported to ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import afm_fx
from afm_fx.onnx_export import ExportReport, export_onnx
from afm_fx.program import Program
from benchmarks.criteo_shape import CriteoShape
from benchmarks.peers.authors_structure import AuthorsDeepFM

DENSE, DENSE_PACKED, THIS_PASS, THIS_PASS_UNPACKED = "dense", "dense, packed", "afm_fx", "afm_fx, not packed"
WEIGHT_SVD, AUTHORS = "weight-SVD", "authors' structure"


@dataclass(frozen=True)
class LatencyModel:
    """What is compared.

    Attributes:
        shape: sizes of the model.
        code_width: width of the tables' codes.
        mlp_rank: rank of the MLP's layers after the first, which is left as it is.
        calibration_rows: rows of traffic that calibrate.
        seed: of weights and traffic.
    """

    shape: CriteoShape
    code_width: int = 2
    mlp_rank: int = 64
    calibration_rows: int = 16_384
    seed: int = 0

    def policy(self) -> afm_fx.Fixed:
        """Ranks of every site. The first MLP layer absorbs the tables' decoders and is not factored itself."""
        return afm_fx.Fixed(embedding=self.code_width, linear=self.mlp_rank, overrides={"dnn.linears.0": None})

    def programs(self) -> Iterator[tuple[str, Callable[[], Program]]]:
        """Name and maker of each contender, the reference first."""
        example = self.shape.batch(4, self.seed)
        dense = afm_fx.capture(self.shape.deepfm(self.seed), example)
        yield DENSE, lambda: dense
        yield DENSE_PACKED, lambda: afm_fx.pack(dense)
        batches = self.shape.batch(self.calibration_rows, self.seed + 1).split(2048)
        statistics = afm_fx.calibrate(dense, batches)
        plan = afm_fx.make_plan(dense, statistics, self.policy())
        yield THIS_PASS, lambda: afm_fx.pack(afm_fx.apply_plan(dense, plan))
        yield THIS_PASS_UNPACKED, lambda: afm_fx.apply_plan(dense, plan)
        weights_only = afm_fx.make_plan(dense, statistics, self.policy(), basis="weight_svd")
        yield WEIGHT_SVD, lambda: afm_fx.pack(afm_fx.apply_plan(dense, weights_only))
        yield AUTHORS, lambda: afm_fx.capture(self.authors_model(), example)

    def authors_model(self) -> AuthorsDeepFM:
        """The hand-written structure at the same ranks."""
        torch.manual_seed(self.seed)
        hidden = self.shape.hidden
        return AuthorsDeepFM(
            self.shape.table_rows,
            self.shape.dense_fields,
            code_width=self.code_width,
            width=self.shape.width,
            hidden=hidden,
            ranks=(None, *(self.mlp_rank for _ in hidden[1:])),
        ).eval()

    def export(self, folder: Path) -> dict[str, ExportReport]:
        """Exports every contender into a folder, each checked against torch."""
        reports = {}
        for position, (name, make) in enumerate(self.programs()):
            reports[name] = export_onnx(make(), folder / f"{position}.onnx")
        return reports
