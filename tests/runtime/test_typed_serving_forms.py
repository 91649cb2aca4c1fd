"""Typed inputs in every form that serves: reduced tables and packages take the original's batches too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import afm_fx
from afm_fx.errors import BatchError
from afm_fx.measure.benchmark import benchmark
from afm_fx.measure.contenders import Competitor, Compiled
from tests.passes.serving.test_pack_tables import SIZES, Wide, wide_inputs


def typed_wide() -> tuple[afm_fx.Program, Tensor]:
    program = afm_fx.capture(Wide((8,) * len(SIZES)).eval(), wide_inputs(3)[0].float())
    return afm_fx.pack(program, inputs="typed").program, wide_inputs(9)[0].float()


def test_the_error_of_reduced_tables_is_measured_on_batches_of_the_original() -> None:
    typed, x = typed_wide()
    result = afm_fx.reduce_precision(typed, "int8", [x], smallest_bytes=0)
    batch = typed.convert_inputs(x)
    error = result.report.error
    assert error is not None
    assert error.rows == 9
    assert error.largest == pytest.approx(float((result.program.run(batch) - typed.run(batch)).abs().max()), rel=1e-3)
    assert error.rmse > 0
    x[2, 1] = SIZES[1]
    with pytest.raises(BatchError, match=r"row 2: .* of input 'x', column 1 is"):
        afm_fx.reduce_precision(typed, "int8", [x], smallest_bytes=0)


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
    with pytest.raises(BatchError, match=r"'typed.pt2' does not take this batch: row 2: .* column 1 is"):
        model.run(x)
