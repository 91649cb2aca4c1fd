"""The versions of one model that the latency benchmark compares: programs, and the forms in which they are served."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import onnx
import torch
from torch import Tensor

import afm_fx
from afm_fx.io import quiet
from afm_fx.measure import Competitor, Compiled
from afm_fx.program import Program
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.serving.authors_structure import AuthorsDeepFM


class Form(Enum):
    """How a program is served."""

    ONNX = auto()
    ONNX_INT8 = auto()
    ONNX_FLOAT16_TABLES_INT8 = auto()
    TORCH_COMPILE = auto()
    AOTI = auto()


COMPILED = frozenset({Form.TORCH_COMPILE, Form.AOTI})
"""Forms that are compiled for a number of threads."""

DENSE, DENSE_PACKED, THIS_PASS, THIS_PASS_UNPACKED = "dense", "dense, packed", "afm_fx", "afm_fx, not packed"
WEIGHT_SVD, AUTHORS = "weight-SVD", "authors' structure"
GUARDED = {"afm_fx, ids: error": "error"}
"""This pass's packed program with each guard of ids outside their table, by the choice of :func:`afm_fx.pack`."""
DENSE_INT8, THIS_PASS_INT8 = "dense, int8 Linears", "afm_fx, int8 Linears"
REDUCED = "afm_fx, float16 tables, int8 Linears"
DENSE_COMPILE, THIS_PASS_COMPILE = "dense, torch.compile", "afm_fx, torch.compile"
DENSE_AOTI, THIS_PASS_AOTI = "dense, AOTInductor", "afm_fx, AOTInductor"

CONTENDERS: dict[str, tuple[str, Form]] = {
    DENSE: (DENSE, Form.ONNX),
    DENSE_PACKED: (DENSE_PACKED, Form.ONNX),
    THIS_PASS: (THIS_PASS, Form.ONNX),
    **{name: (name, Form.ONNX) for name in GUARDED},
    THIS_PASS_UNPACKED: (THIS_PASS_UNPACKED, Form.ONNX),
    WEIGHT_SVD: (WEIGHT_SVD, Form.ONNX),
    AUTHORS: (AUTHORS, Form.ONNX),
    DENSE_INT8: (DENSE, Form.ONNX_INT8),
    THIS_PASS_INT8: (THIS_PASS, Form.ONNX_INT8),
    REDUCED: (THIS_PASS, Form.ONNX_FLOAT16_TABLES_INT8),
    DENSE_COMPILE: (DENSE, Form.TORCH_COMPILE),
    THIS_PASS_COMPILE: (THIS_PASS, Form.TORCH_COMPILE),
    DENSE_AOTI: (DENSE, Form.AOTI),
    THIS_PASS_AOTI: (THIS_PASS, Form.AOTI),
}
"""Program and form of every contender, the reference first."""

COMPARED_ROWS = 256
"""Rows of traffic on which int8 and compiled forms are compared with the program that they serve."""

SMALLEST_WEIGHT = 4096
"""Linears of fewer weights are not quantised: quantising what flows in costs more than the product."""

ACCEPTED = 1e-4
"""Largest accepted difference of compiled code; files and packages are checked when they are exported."""


@dataclass(frozen=True)
class Entry:
    """One contender, ready for the benchmark.

    Attributes:
        name: of the contender.
        competitor: what the benchmark loads.
        parameters: scalar parameters of the program.
        bytes: of the file or package, None where there is none.
        operators: (operator, count) pairs of an ONNX file, else empty.
        max_abs_difference: largest difference to the program under torch, or to the float file for int8.
        seconds: what making it took, compilation included.
    """

    name: str
    competitor: Competitor
    parameters: int
    bytes: int | None
    operators: tuple[tuple[str, int], ...]
    max_abs_difference: float | None
    seconds: float

    @property
    def node_count(self) -> int | None:
        """Number of operators in an ONNX file."""
        return sum(count for _, count in self.operators) or None


@dataclass(frozen=True)
class LatencyModel:
    """What is compared.

    Attributes:
        shape: sizes of the model.
        code_width: width of the tables' codes.
        mlp_rank: rank of the MLP's layers after the first, which is left as it is.
        calibration_rows: rows of traffic that calibrate.
        seed: of weights and traffic.
        smallest_weight: Linears of fewer weights are not quantised.
    """

    shape: CriteoShape
    code_width: int = 2
    mlp_rank: int = 64
    calibration_rows: int = 16_384
    seed: int = 0
    smallest_weight: int = SMALLEST_WEIGHT

    def policy(self) -> afm_fx.Fixed:
        """Ranks of every site. The first MLP layer absorbs the tables' decoders and is not factored itself."""
        return afm_fx.Fixed(embedding=self.code_width, linear=self.mlp_rank, overrides={"dnn.linears.0": None})

    def entries(
        self, folder: Path, names: Sequence[str], threads: int = 1, made: Mapping[str, Entry] | None = None
    ) -> dict[str, Entry]:
        """Makes the contenders named, each compared with torch.

        Args:
            folder: where files go.
            names: keys of ``CONTENDERS``.
            threads: of compiled loops, which are fixed when they are compiled.
            made: entries for another number of threads; their ONNX files serve any.
        """
        files = {name: entry for name, entry in (made or {}).items() if CONTENDERS[name][1] not in COMPILED}
        return {name: files.get(name) or self._entry(name, folder, threads) for name in CONTENDERS if name in names}

    def program(self, name: str) -> Program:
        """One of the programs that are served."""
        if name in GUARDED:
            return afm_fx.pack(self._low_rank, out_of_range=GUARDED[name]).program
        makers = {
            DENSE: lambda: self._dense,
            DENSE_PACKED: lambda: self._dense_packed,
            THIS_PASS: lambda: self._low_rank_packed,
            THIS_PASS_UNPACKED: lambda: self._low_rank,
            WEIGHT_SVD: self._weight_svd,
            AUTHORS: lambda: afm_fx.capture(self.authors_model(), self.shape.batch(4, self.seed)),
        }
        return makers[name]()

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

    @functools.cached_property
    def _dense(self) -> Program:
        return afm_fx.capture(self.shape.deepfm(self.seed), self.shape.batch(4, self.seed))

    @functools.cached_property
    def _dense_packed(self) -> Program:
        return afm_fx.pack(self._dense).program

    @functools.cached_property
    def _statistics(self) -> afm_fx.Statistics:
        return afm_fx.calibrate(self._dense, self.shape.batch(self.calibration_rows, self.seed + 1).split(2048))

    @functools.cached_property
    def _low_rank(self) -> Program:
        return afm_fx.apply_plan(self._dense, afm_fx.make_plan(self._dense, self._statistics, self.policy()))

    @functools.cached_property
    def _low_rank_packed(self) -> Program:
        return afm_fx.pack(self._low_rank).program

    def _weight_svd(self) -> Program:
        plan = afm_fx.make_plan(self._dense, self._statistics, self.policy(), basis="weight_svd")
        return afm_fx.pack(afm_fx.apply_plan(self._dense, plan)).program

    def _rows(self) -> Tensor:
        return self.shape.batch(COMPARED_ROWS, self.seed + 3)

    def _entry(self, name: str, folder: Path, threads: int) -> Entry:
        base, form = CONTENDERS[name]
        program = self.program(base)
        started = time.perf_counter()
        if form is Form.TORCH_COMPILE:
            entry = self._compiled(name, program, threads)
        elif form is Form.AOTI:
            entry = _package(name, program, folder, threads)
        else:
            entry = self._file(name, program, form, folder)
        return Entry(**{**vars(entry), "seconds": time.perf_counter() - started})

    def _compiled(self, name: str, program: Program, threads: int) -> Entry:
        compiled, rows, before = Compiled(program), self._rows(), torch.get_num_threads()
        torch.set_num_threads(threads)  # as it will be when it is timed: otherwise it would be compiled again
        try:
            with torch.inference_mode():
                difference = float((compiled.function(rows) - program.run(rows)).abs().max())
        finally:
            torch.set_num_threads(before)
        assert difference < ACCEPTED, f"{name} differs from torch by {difference:.1e}"
        return Entry(name, compiled, program.parameter_count(), None, (), difference, 0.0)

    def _file(self, name: str, program: Program, form: Form, folder: Path) -> Entry:
        stem = f"{list(CONTENDERS).index(name)}"
        if form is Form.ONNX_FLOAT16_TABLES_INT8:
            program = afm_fx.reduce_precision(program, "float16").program
        export = afm_fx.export_onnx(program, folder / f"{stem}.onnx", force=True)
        parameters = program.parameter_count()
        if form is Form.ONNX:
            difference = export.max_abs_difference
            return Entry(name, export.path, parameters, export.bytes, export.operators, difference, 0.0)
        path = folder / f"{stem}-int8.onnx"
        quantize_linears(export.path, path, self.smallest_weight)
        quantized, exact = (torch.as_tensor(afm_fx.Session(each).run(self._rows())) for each in (path, export.path))
        difference = float((quantized - exact).abs().max())
        operators = afm_fx.check_onnx(path).operators
        return Entry(name, path, parameters, path.stat().st_size, operators, difference, 0.0)


def _package(name: str, program: Program, folder: Path, threads: int) -> Entry:
    path = folder / f"{list(CONTENDERS).index(name)}-{threads}.pt2"
    report = afm_fx.export_aoti(program, path, threads=threads)
    return Entry(name, report.path, report.parameters, report.bytes, (), report.max_abs_difference, 0.0)


def quantize_linears(path: Path, out: Path, smallest_weight: int) -> None:
    """Writes a copy of an ONNX file whose Linears compute in int8, by ONNX Runtime's own quantiser.

    Weights are in int8 with a scale per column, what flows in is quantised when it runs, with one scale for the whole
    batch; tables stay as they are. Weights take 7 of the 8 bits: processors without int8 dot products (VNNI) add pairs
    of products in 16 bits, where full 8 bits overflow and give wrong outputs.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - an extra (cpu or gpu)

    graph = onnx.load(path, load_external_data=False).graph
    weights = {each.name: math.prod(each.dims) for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    small = [node.name for node in products if weights.get(node.input[1], 0) < smallest_weight]
    with quiet():  # it advises steps that the exporter has taken
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # The quantiser makes a MatMul of every Gemm first, and calls it so.
            nodes_to_exclude=[*small, *(f"{name}_MatMul" for name in small)],
        )
