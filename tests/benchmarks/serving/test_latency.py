from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from afm_fx.errors import UserError
from afm_fx.measure.benchmark import benchmark
from afm_fx.runtime.aoti import load_aoti
from benchmarks.__main__ import app
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.results import markdown
from benchmarks.serving.contenders import (
    AUTHORS,
    CONTENDERS,
    DENSE,
    DENSE_INT8,
    DENSE_PACKED,
    GUARDED,
    THIS_PASS,
    THIS_PASS_AOTI,
    THIS_PASS_COMPILE,
    THIS_PASS_UNPACKED,
    WEIGHT_SVD,
    Form,
    LatencyModel,
)
from benchmarks.serving.latency import _chosen, parts


def small_model() -> LatencyModel:
    shape = CriteoShape(total_rows=600, sparse_fields=3, dense_fields=2, width=8, hidden=(32, 32, 32))
    return LatencyModel(shape, code_width=2, mlp_rank=6, calibration_rows=512, smallest_weight=150)


def largest_int8_weight(path: Path) -> int:
    arrays = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    return max(int(np.abs(each.astype(int)).max()) for each in arrays if each.dtype == np.int8 and each.ndim == 2)


ONNX_FORMS = (Form.ONNX, Form.ONNX_INT8, Form.ONNX_FLOAT16_TABLES_INT8)
TINY: dict[str, Any] = {"seconds": 0.01, "rounds": 1}


def test_all_files_are_exported_checked_timed_and_reported(tmp_path: Path) -> None:
    pytest.importorskip("deepctr_torch")
    model = small_model()
    guarded = next(iter(GUARDED))
    left_out = [name for name in GUARDED if name != guarded]
    names = [name for name, (_, form) in CONTENDERS.items() if form in ONNX_FORMS and name not in left_out]
    entries = model.entries(tmp_path, names)
    assert list(entries) == names
    assert names[:7] == [DENSE, DENSE_PACKED, THIS_PASS, guarded, THIS_PASS_UNPACKED, WEIGHT_SVD, AUTHORS]
    parameters = {name: entry.parameters for name, entry in entries.items()}
    assert all(parameters[name] < 0.6 * parameters[DENSE] for name in (THIS_PASS, WEIGHT_SVD, AUTHORS))
    counts = {name: entry.node_count or 0 for name, entry in entries.items()}
    assert 0 < counts[DENSE_PACKED] < counts[DENSE]
    assert 0 < counts[THIS_PASS] < counts[guarded] < counts[THIS_PASS_UNPACKED]
    for name, entry in entries.items():
        integer = dict(entry.operators).get("MatMulInteger", 0)
        assert entry.max_abs_difference is not None
        if CONTENDERS[name][1] is Form.ONNX:
            assert integer == 0
            assert entry.max_abs_difference <= 1e-5
        else:
            assert integer == (3 if name == DENSE_INT8 else 5)
            assert 1e-6 < entry.max_abs_difference < 0.1
            assert largest_int8_weight(tmp_path / str(entry.competitor)) == 64
    result = benchmark(
        {name: entry.competitor for name, entry in entries.items()}, model.shape.batch(8, 0), batch_sizes=(1, 4), **TINY
    )
    page = markdown(parts(entries, [result]))
    assert all(page.count(f"| {name} |") >= 2 for name in entries)
    assert "1 interleaved round" in page


@pytest.mark.thorough
def test_compiled_contenders_are_timed_beside_the_files_and_agree(tmp_path: Path) -> None:
    pytest.importorskip("deepctr_torch")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile and AOTInductor need a C++ compiler")
    model = small_model()
    entries = model.entries(tmp_path, [DENSE, THIS_PASS_COMPILE, THIS_PASS_AOTI], threads=1)
    for entry in entries.values():
        assert entry.max_abs_difference is not None
        assert entry.max_abs_difference < 1e-5
        assert entry.seconds > 0
    assert entries[THIS_PASS_COMPILE].bytes is None
    again = model.entries(tmp_path, [DENSE, THIS_PASS_AOTI], threads=2, made=entries)
    assert again[DENSE] is entries[DENSE]
    paths = [str(each[THIS_PASS_AOTI].competitor) for each in (entries, again)]
    assert [load_aoti(path).note.threads for path in paths] == [1, 2]
    result = benchmark(
        {name: entry.competitor for name, entry in entries.items()}, model.shape.batch(8, 0), batch_sizes=(1, 4), **TINY
    )
    assert [result.timing(name, 4).runtime for name in entries] == ["ONNX Runtime", "torch.compile", "AOTInductor"]
    page = markdown(parts(entries, [result]))
    assert f"| {THIS_PASS_COMPILE} | {entries[THIS_PASS_COMPILE].parameters:,} |  |  |" in page


def test_contenders_are_chosen_by_name_and_the_reference_is_always_there() -> None:
    assert _chosen([THIS_PASS_AOTI]) == [DENSE, THIS_PASS_AOTI]
    with pytest.raises(UserError, match="there is no contender 'fast'; there are: dense; dense, packed"):
        _chosen(["fast"])


def test_the_first_mlp_layer_is_left_alone_and_the_others_are_factored() -> None:
    pytest.importorskip("deepctr_torch")
    policy = small_model().policy()
    assert policy.overrides == {"dnn.linears.0": None}
    assert (policy.embedding, policy.linear) == (2, 6)


def test_existing_results_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "latency.md").write_text("old")
    result = CliRunner().invoke(app, ["latency", "--output-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert (tmp_path / "latency.md").read_text() == "old"
