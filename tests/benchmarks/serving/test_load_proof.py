"""The proof under load: of a small file for a moment, and what breaks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from afm_fx.commands.cli import app
from afm_fx.errors import BenchmarkError
from afm_fx.measure.latencies import Latencies
from afm_fx.measure.serving_load import LoadResult
from benchmarks.common.results import markdown
from benchmarks.serving.load_proof import LoadProof, ProofSettings, Run, memory_growth, prove, run_apart
from benchmarks.serving.serving_load import PROOF_COLUMNS, SPEED_COLUMNS, parts, proof_rows, speed_rows

pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen has no wheel for this Python")
pytest.importorskip("onnxruntime")

SETTINGS = ProofSettings(batch_size=8, latency_bound_ms=100.0, seconds=0.1, half_seconds=2.5)


def run_here(arguments: Sequence[str]) -> Run:
    """``afm-fx load`` in this process, with few requests; its memory is made up."""
    folder = Path(arguments[arguments.index("--out") + 1])
    path = folder.with_suffix(".json")
    quick = ["--min-queries", "500"]
    result = CliRunner().invoke(app, ["load", *arguments, *quick, "--json", str(path)])
    assert path.is_file(), result.output
    return LoadResult.from_json(path.read_text()), (1_000_000,) * 9


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> LoadProof:
    folder = tmp_path_factory.mktemp("load")
    path = folder / "small.onnx"
    weight = onnx.numpy_helper.from_array(np.full((16, 1), 0.5, dtype=np.float32), "weight")
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", 16), ("y", 1))
    )
    product = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = onnx.helper.make_graph([product], "small", [x], [y], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    np.save(folder / "rows.npy", np.random.default_rng(0).random((64, 16), dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "afm_fx.measure.serving_load.highest_qps", lambda holds, first: 600.0
        )  # its search takes many seconds
        return prove({"small": path}, folder / "rows.npy", folder / "logs", SETTINGS, run_here)["small"]


def test_half_the_rate_that_was_found_is_held_without_a_loss(proof: LoadProof) -> None:
    highest, half = proof.highest.runs[0], proof.half.runs[0]
    assert not highest.invalid
    assert half.target_qps == pytest.approx(highest.target_qps / 2, rel=1e-4)
    assert half.queries == half.answered >= 500
    assert proof.lost == 0
    assert proof.within_bound
    assert proof.memory_flat
    assert "Scenario : Server" in proof.half_summary


def test_a_loss_a_late_tail_or_growth_break_the_proof(proof: LoadProof) -> None:
    latencies = Latencies(500, 900.0, 950.0, 1_000.0, None)
    run = dataclasses.replace(proof.half.runs[0], invalid="", latencies=latencies)

    def with_run(**changes: Any) -> LoadProof:
        return dataclasses.replace(
            proof, half=dataclasses.replace(proof.half, runs=(dataclasses.replace(run, **changes),))
        )

    def with_p99(value: float | None) -> LoadProof:
        return with_run(latencies=dataclasses.replace(latencies, p99_us=value))

    assert with_run().holds
    assert not with_run(answered=run.queries - 1).holds
    assert not with_p99(101_000.0).holds
    assert not with_p99(None).holds
    assert not dataclasses.replace(with_run(), resident=(1_000_000,) * 6 + (1_100_000,) * 3).holds
    assert not with_run(invalid="too few").holds


def test_memory_growth_leaves_out_how_a_run_begins() -> None:
    assert memory_growth((0, 1, 2, 50, 50, 50, 50, 51, 51)) == 1
    assert memory_growth((9, 9, 9, 50, 50, 50, 40, 40, 40)) == -10
    assert memory_growth((1, 2, 3)) is None


def test_a_server_in_a_process_of_its_own_is_watched_and_its_failure_told(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"afm-fx load failed: .*there is no file"):
        run_apart(["a=missing.onnx", "--latency-bound", "10", "--out", str(tmp_path / "logs")])


def test_the_page_shows_every_server(proof: LoadProof) -> None:
    proofs = {"small": proof}
    assert [len(row) for row in speed_rows(proofs)] == [len(SPEED_COLUMNS)]
    assert [len(row) for row in proof_rows(proofs)] == [len(PROOF_COLUMNS)]
    page = markdown(parts(SETTINGS, proofs, 1.5))
    assert "the machine was busy" in page
    assert f"| {proof.half.runs[0].queries:,} |" in page
