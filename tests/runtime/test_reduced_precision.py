from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import BatchError, CalibrationError, UserError
from afm_fx.runtime.reduced_precision import output_error, reduce_precision

ROWS = 500


class Clicks(nn.Module):
    """Tables with a linear term each and an MLP, ending in a probability."""

    def __init__(self, fields: int = 4, rows: int = ROWS, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(fields))
        self.terms = nn.ModuleList(nn.Embedding(rows, 1) for _ in range(fields))
        self.mlp = nn.Sequential(nn.Linear(fields * width, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids: Tensor) -> Tensor:
        columns = [ids[:, field] for field in range(ids.shape[1])]
        features = torch.cat([table(each) for table, each in zip(self.tables, columns, strict=True)], 1)
        terms = torch.cat([table(each) for table, each in zip(self.terms, columns, strict=True)], 1)
        return torch.sigmoid(self.mlp(features) + terms.sum(1, keepdim=True))


def clicks(rows: int) -> Tensor:
    return torch.randint(0, ROWS, (rows, 4))


@pytest.fixture(scope="module")
def dense() -> afm_fx.Program:
    torch.manual_seed(3)
    return afm_fx.capture(Clicks().eval(), clicks(4))


@pytest.fixture(scope="module")
def low_rank(dense: afm_fx.Program) -> afm_fx.Program:
    return afm_fx.compress(dense, [clicks(400)], afm_fx.Fixed(embedding=6, linear=None), pack=False).program


@pytest.mark.parametrize("tables", ["float16", "int8"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["dense", "low_rank"])
def test_tables_shrink_and_the_file_agrees_with_the_reduced_program(
    tables: str, packed: bool, kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    program: afm_fx.Program = request.getfixturevalue(kind)
    program = afm_fx.pack(program).program if packed else program
    before = str(program.graph_module.graph)
    batches = [clicks(30), clicks(20)]
    result = reduce_precision(program, tables, batches, smallest_bytes=0)
    assert str(program.graph_module.graph) == before
    report = result.report
    assert {stored for _, stored in report.reduced} == (
        {"float16", "int8"} if tables == "int8" and not packed else {tables}
    )
    assert report.bytes_after == result.program.state_bytes() < report.bytes_before == program.state_bytes()
    assert report.error is not None
    assert report.error.rows == 50
    assert 0 < report.error.rmse <= report.error.largest < (0.01 if tables == "float16" else 0.2)
    export = afm_fx.export_onnx(result.program, tmp_path / "reduced.onnx")
    assert export.max_abs_difference is not None
    assert export.max_abs_difference < 1e-5
    if packed:
        lookups = 1 if tables == "float16" else 2
        assert dict(export.operators)["Gather"] == lookups
        assert dict(export.operators)["Cast"] == 1
    assert export.bytes < program.state_bytes()


def test_the_reported_error_is_that_of_the_logits(dense: afm_fx.Program):
    result = reduce_precision(dense, "int8", [(batch := clicks(64))], smallest_bytes=0)
    wanted, found = (torch.logit(each.run(batch).double()) for each in (dense, result.program))
    error = result.report.error
    assert error is not None
    assert error.largest == pytest.approx(float((found - wanted).abs().max()), rel=1e-3)
    assert error.rmse == pytest.approx(float((found - wanted).square().mean().sqrt()), rel=1e-3)


def test_programs_without_a_sigmoid_are_compared_on_their_outputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.linear(x), "rank": x.argmax(1)}

    torch.manual_seed(0)
    one, other = (afm_fx.capture(Two(), torch.randn(4, 3)) for _ in range(2))
    x = torch.randn(5, 3)
    error = output_error(one, other, [x])
    assert error.largest == pytest.approx(float((one.run(x)["a"] - other.run(x)["a"]).abs().max()))
    assert output_error(one, one, [x]).largest == 0
    assert "logit error over 5 rows" in error.line()


def test_small_tables_stay_by_default_and_the_report_says_why(dense: afm_fx.Program):
    report = reduce_precision(dense, "int8").report
    assert len(report.kept) == 8
    assert report.error is None
    assert "'tables.0.weight' stays as it is: it has 16,000 bytes" in report.table()


def test_the_report_prints_and_is_json(dense: afm_fx.Program):
    report = reduce_precision(dense, "int8", [clicks(8)], smallest_bytes=0).report
    text = report.table()
    assert "tables.0.weight" in text
    assert "int8" in text
    assert "logit error over 8 rows" in text
    content = json.loads(json.dumps(asdict(report)))
    assert content["reduced"][0] == ["tables.0.weight", "int8"]
    assert content["error"]["rows"] == 8


def test_mistakes_are_named(dense: afm_fx.Program):
    with pytest.raises(UserError, match="float16, int8, got 'int4'"):
        reduce_precision(dense, "int4")
    with pytest.raises(CalibrationError, match="got one Tensor"):
        reduce_precision(dense, "int8", clicks(8))
    with pytest.raises(BatchError, match="batch 0"):
        reduce_precision(dense, "int8", [clicks(8)[:, :2]])
    with pytest.raises(UserError, match="there are no batches"):
        reduce_precision(dense, "int8", [])


@pytest.mark.parametrize("tables", ["float16", "int8"])
def test_a_reduced_program_still_computes_in_float64_and_refuses_ids_outside(tables: str):
    torch.manual_seed(1)
    program = afm_fx.pack(afm_fx.capture(Clicks().eval(), clicks(4))).program
    result = reduce_precision(program, tables, smallest_bytes=0).program
    batch = clicks(12)
    double = result.to(torch.float64).run(batch)
    assert double.dtype is torch.float64
    np.testing.assert_allclose(double.numpy(), result.run(batch).numpy(), atol=1e-5)
    batch[3, 1] = ROWS
    with pytest.raises(BatchError, match="row 3: id 500"):
        result.run(batch)


@pytest.mark.parametrize(("tables", "kind"), [("float16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)])
def test_onnx_runtime_keeps_the_table_small_when_it_optimises_the_file(tables: str, kind: int, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    program = afm_fx.pack(afm_fx.capture(Clicks().eval(), clicks(4))).program
    result = reduce_precision(program, tables, smallest_bytes=0).program
    afm_fx.export_onnx(result, tmp_path / "reduced.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "reduced.onnx"), options, providers=["CPUExecutionProvider"])
    held = onnx.load(tmp_path / "optimised.onnx").graph.initializer
    assert [each.data_type for each in held if list(each.dims) == [4 * ROWS, 9]] == [kind]
