from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afm_fx.benchmark import benchmark
from benchmarks.criteo_shape import CriteoShape
from benchmarks.latency_command import app, as_json, markdown
from benchmarks.latency_contenders import (
    AUTHORS,
    DENSE,
    DENSE_PACKED,
    THIS_PASS,
    THIS_PASS_UNPACKED,
    WEIGHT_SVD,
    LatencyModel,
)


def small_model() -> LatencyModel:
    shape = CriteoShape(total_rows=600, sparse_fields=3, dense_fields=2, width=8, hidden=(32, 32, 32))
    return LatencyModel(shape, code_width=2, mlp_rank=6, calibration_rows=512)


def test_all_versions_are_exported_checked_timed_and_reported(tmp_path: Path) -> None:
    pytest.importorskip("deepctr_torch")
    model = small_model()
    exports = model.export(tmp_path)
    assert list(exports) == [DENSE, DENSE_PACKED, THIS_PASS, THIS_PASS_UNPACKED, WEIGHT_SVD, AUTHORS]
    parameters = {name: report.parameters for name, report in exports.items()}
    assert all(parameters[name] < 0.6 * parameters[DENSE] for name in (THIS_PASS, WEIGHT_SVD, AUTHORS))
    assert exports[DENSE_PACKED].node_count < exports[DENSE].node_count
    assert exports[THIS_PASS].node_count < exports[THIS_PASS_UNPACKED].node_count
    for report in exports.values():
        assert report.max_abs_difference is not None
        assert report.max_abs_difference <= 1e-5
    result = benchmark(
        {name: report.path for name, report in exports.items()},
        model.shape.batch(8, 0),
        batch_sizes=(1, 4),
        seconds=0.01,
        min_repeats=2,
        max_repeats=2,
        rounds=1,
    )
    page = markdown("python benchmarks/latency.py", exports, [result])
    assert "`python benchmarks/latency.py`" in page
    assert all(page.count(f"| {name} |") >= 2 for name in exports)
    assert result.machine.cpu in page
    content = json.loads(json.dumps(as_json("python benchmarks/latency.py", exports, [result])))
    assert content["exports"][DENSE]["parameters"] == parameters[DENSE]
    assert len(content["results"][0]["timings"]) == 12


def test_the_first_mlp_layer_is_left_alone_and_the_others_are_factored() -> None:
    pytest.importorskip("deepctr_torch")
    policy = small_model().policy()
    assert policy.overrides == {"dnn.linears.0": None}
    assert (policy.embedding, policy.linear) == (2, 6)


def test_existing_results_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "latency.md").write_text("old")
    result = CliRunner().invoke(app, ["--output-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert (tmp_path / "latency.md").read_text() == "old"
