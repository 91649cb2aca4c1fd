"""The examples run and say what they promise."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import afm_fx
from examples import pass_manager


def test_the_pass_manager_example_shrinks_the_tables_and_keeps_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    pass_manager.main()
    printed = capsys.readouterr().out
    found = re.search(r"tables: ([\d,]+) bytes before, ([\d,]+) after", printed)
    assert found is not None
    before, after = (int(number.replace(",", "")) for number in found.groups())
    assert 2 * after < before
    difference = re.search(r"largest difference to the model: (\S+)", printed)
    assert difference is not None
    assert float(difference.group(1)) < 0.05


def test_the_serving_example_reduces_quantises_compiles_and_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    from examples import smaller_and_compiled

    smaller_and_compiled.main(tmp_path)
    printed = capsys.readouterr().out
    assert {each.name for each in tmp_path.iterdir()} == {"reduced.onnx", "int8.onnx", "low_rank.pt2"}
    difference = re.search(r"largest difference of the package to the program: (\S+)", printed)
    assert difference is not None
    assert float(difference.group(1)) < 1e-5
    assert re.search(r"logit error over 8,192 rows: rmse \d\.\de-0[2-9]", printed)
    assert "' in int8" in printed
    operators = dict(afm_fx.check_onnx(tmp_path / "int8.onnx").operators)
    assert operators["MatMulInteger"] >= 2
    int8 = re.search(r"largest difference of int8 Linears: (\S+)", printed)
    assert int8 is not None
    assert 0 < float(int8.group(1)) < 0.05
