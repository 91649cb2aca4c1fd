from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx import quantized_onnx
from afm_fx.errors import BatchError, FileFormatError, OutputExistsError, UserError
from afm_fx.quantized_onnx import quantize_onnx

pytest.importorskip("onnxruntime")

ROWS, WIDTH, HIDDEN = 300, 16, 64


class Ranker(nn.Module):
    """A table, an MLP whose layers are worth quantising, and a last layer that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.first = nn.Linear(4 * WIDTH + 3, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        features = torch.cat([self.table(ids).flatten(1), dense], 1)
        return self.last(self.second(self.first(features).relu()).relu())


def inputs(rows: int) -> dict[str, Tensor]:
    return {"ids": torch.randint(0, ROWS, (rows, 4)), "dense": torch.randn(rows, 3)}


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    torch.manual_seed(5)
    return afm_fx.capture(Ranker().eval(), inputs(4))


@pytest.fixture(scope="module")
def file(program: afm_fx.Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return afm_fx.export_onnx(program, tmp_path_factory.mktemp("float") / "ranker.onnx").path


def initializers(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    model = onnx.load(path)
    return {each.name: (each.data_type, tuple(each.dims)) for each in model.graph.initializer}


def test_every_gemm_of_the_mlp_becomes_an_integer_product_and_the_table_stays(file: Path, tmp_path: Path):
    before = {node.op_type for node in onnx.load(file).graph.node}
    assert "Gemm" in before
    assert "MatMul" not in before
    report = quantize_onnx(file, path := tmp_path / "int8.onnx", inputs(100))
    operators = dict(afm_fx.check_onnx(path).operators)
    assert len(report.reduced) == operators["MatMulInteger"] == operators["DynamicQuantizeLinear"] == 2
    assert operators["Gather"] == 1
    assert "Gemm" not in operators
    assert "DequantizeLinear" not in operators
    assert [reason for _, reason in report.kept] == ["it has 64 weights, int8 pays from 4,096 on"]
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    held = initializers(path)
    assert held["table.weight"] == initializers(file)["table.weight"] == (onnx.TensorProto.FLOAT, (ROWS, WIDTH))
    assert sum(1 for kind, shape in held.values() if kind == onnx.TensorProto.INT8 and len(shape) == 2) == 2
    assert report.bytes_after < report.bytes_before - 2.5 * (HIDDEN * HIDDEN + HIDDEN * 67)
    assert [value.name for value in model.graph.input] == ["ids", "dense"]


def test_the_reported_error_is_that_of_the_files_on_the_inputs_given(
    program: afm_fx.Program, file: Path, tmp_path: Path
):
    import onnxruntime

    batch = inputs(200)
    report = quantize_onnx(file, path := tmp_path / "int8.onnx", batch)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in batch.items()})[0]
    difference = np.abs(found - program.run(batch).numpy())
    assert report.error is not None
    assert report.error.rows == 200
    assert 1e-4 < report.error.rmse < 0.05
    assert report.error.largest == pytest.approx(float(difference.max()), rel=1e-2)
    assert report.error.rmse == pytest.approx(float(np.sqrt((difference**2).mean())), rel=1e-2)
    assert f"rmse {report.error.rmse:.1e}" in report.table()


def test_random_inputs_serve_where_none_are_given_and_any_batch_size_runs(file: Path, tmp_path: Path):
    import onnxruntime

    report = quantize_onnx(file, path := tmp_path / "int8.onnx")
    assert report.error is not None
    assert report.error.rows == 256
    assert 0 < report.error.rmse <= report.error.largest < 0.1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (1, 5, 64):
        feed = {name: value.numpy() for name, value in inputs(rows).items()}
        assert session.run(None, feed)[0].shape == (rows, 1)


def test_smaller_linears_are_quantised_on_request_and_all_weights_take_seven_bits(file: Path, tmp_path: Path):
    report = quantize_onnx(file, path := tmp_path / "all.onnx", smallest_weight=1)
    assert len(report.reduced) == 3
    assert report.kept == ()

    def largest(path: Path) -> int:
        arrays = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
        return max(int(np.abs(each.astype(int)).max()) for each in arrays if each.dtype == np.int8 and each.ndim == 2)

    assert largest(path) == 64


def test_int8_linears_compose_with_low_rank_packing_and_int8_tables(program: afm_fx.Program, tmp_path: Path):
    low_rank = afm_fx.compress(program, [inputs(400)], afm_fx.Fixed(embedding=8, linear=None)).program
    reduced = afm_fx.reduce_precision(low_rank, "int8", smallest_bytes=0)
    assert len(reduced.report.reduced) == 1
    file = afm_fx.export_onnx(reduced.program, tmp_path / "reduced.onnx").path
    report = quantize_onnx(file, path := tmp_path / "int8.onnx", inputs(100), smallest_weight=2000)
    assert len(report.reduced) == 2
    assert report.error is not None
    assert report.error.rmse < 0.05
    kinds = [kind for kind, shape in initializers(path).values() if shape == (ROWS, 8)]
    assert kinds == [onnx.TensorProto.INT8]


def test_external_weights_are_read_and_written(
    program: afm_fx.Program, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = afm_fx.export_onnx(program, tmp_path / "float.onnx", external_data_bytes=0)
    assert source.data_path is not None
    batch = inputs(50)
    inside = quantize_onnx(source.path, tmp_path / "inside.onnx", batch)
    monkeypatch.setattr(quantized_onnx, "EXTERNAL_DATA_BYTES", 0)
    report = quantize_onnx(source.path, path := tmp_path / "int8.onnx", batch)
    assert (tmp_path / "int8.onnx.data").stat().st_size > ROWS * WIDTH * 4
    assert path.stat().st_size < ROWS * WIDTH * 4
    assert report.error is not None
    assert inside.error is not None
    assert report.error.rmse == pytest.approx(inside.error.rmse)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "float.onnx", "float.onnx.data", "inside.onnx", "int8.onnx", "int8.onnx.data"
    ]  # fmt: skip


def test_a_product_that_scales_what_it_reads_is_reported_as_left(tmp_path: Path):
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), dtype=np.float32), "weight")
    node = onnx.helper.make_node("Gemm", ["x", "weight"], ["y"], alpha=0.5, transB=1)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 64]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "scaled", values[:1], values[1:], [weight])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "scaled.onnx")
    with pytest.raises(UserError, match="no Linear to quantise: 'product_0': it scales or transposes what it reads"):
        quantize_onnx(tmp_path / "scaled.onnx", tmp_path / "int8.onnx")


def test_mistakes_are_named_and_leave_nothing_behind(file: Path, tmp_path: Path):
    with pytest.raises(FileFormatError, match="no ONNX file"):
        quantize_onnx(tmp_path / "missing.onnx", tmp_path / "out.onnx")
    with pytest.raises(UserError, match="choose another path"):
        quantize_onnx(file, file, force=True)
    with pytest.raises(UserError, match=r"no Linear to quantise.*it has 64 weights, int8 pays from 10,000"):
        quantize_onnx(file, tmp_path / "out.onnx", smallest_weight=10_000)
    with pytest.raises(BatchError, match=r"takes input 'dense' as float32"):
        quantize_onnx(file, tmp_path / "out.onnx", {**inputs(4), "dense": torch.randn(4, 2)})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.onnx").write_text("old")
    with pytest.raises(OutputExistsError):
        quantize_onnx(file, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "old"
    assert len(quantize_onnx(file, tmp_path / "out.onnx", force=True).reduced) == 2
