"""Typed inputs in every form that serves: reduced tables, int8 files and packages take the original's batches too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import afm_fx
from afm_fx.benchmark import benchmark
from afm_fx.contenders import Competitor, Compiled, make_contender
from afm_fx.errors import BatchError
from tests.passes.test_pack_tables import SIZES, Wide, wide_inputs


def typed_wide() -> tuple[afm_fx.Program, Tensor]:
    program = afm_fx.capture(Wide((8,) * len(SIZES)).eval(), wide_inputs(3)[0].float())
    return afm_fx.pack(program, inputs="typed").program, wide_inputs(9)[0].float()


def test_the_error_of_reduced_tables_is_measured_on_batches_of_the_original_or_typed_ones() -> None:
    typed, x = typed_wide()
    reports = [
        afm_fx.reduce_precision(typed, "int8", [batch], smallest_bytes=0).report
        for batch in (x, typed.convert_inputs(x))
    ]
    assert reports[0].error == reports[1].error
    assert reports[0].error is not None
    assert reports[0].error.rmse > 0
    x[2, 1] = SIZES[1]
    with pytest.raises(BatchError, match=r"row 2, column 1 of input 'x'"):
        afm_fx.reduce_precision(typed, "int8", [x], smallest_bytes=0)


def test_a_quantised_file_still_says_how_its_inputs_are_made(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    typed, x = typed_wide()
    file = afm_fx.export_onnx(typed, tmp_path / "typed.onnx").path
    report = afm_fx.quantize_onnx(file, path := tmp_path / "int8.onnx", x, smallest_weight=64)
    assert len(report.reduced) == 1
    assert report.error is not None
    assert 0 < report.error.rmse < 0.1
    found = make_contender("int8", path, 1).prepare(x)()[0]
    assert float((torch.as_tensor(found) - typed.run(typed.convert_inputs(x))).abs().max()) == pytest.approx(
        report.error.largest, rel=1e-3
    )


def test_a_package_takes_typed_batches_and_those_of_the_original(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    typed, x = typed_wide()
    package = afm_fx.export_aoti(typed, tmp_path / "typed.pt2").path
    model = afm_fx.load_aoti(package)
    assert [(each.name, each.dtype) for each in model.note.inputs] == [("sparse", "int64"), ("dense", "float32")]
    batch = typed.convert_inputs(x)
    expected = typed.run(batch)
    for given in (x, batch, dict(reversed(batch.items()))):
        torch.testing.assert_close(model.run(given), expected)
    contenders: dict[str, Competitor] = {"package": package, "compiled": Compiled(typed)}
    result = benchmark(contenders, x, batch_sizes=(3,), seconds=0.01, rounds=1)
    assert [timing.runtime for timing in result.timings] == ["AOTInductor", "torch.compile"]
    x[2, 1] = SIZES[1]
    with pytest.raises(BatchError, match=r"'typed.pt2' does not take this batch: row 2, column 1"):
        model.run(x)
