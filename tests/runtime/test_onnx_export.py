from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from afm_fx.errors import ExportError, OutputExistsError
from afm_fx.program.capture import capture
from afm_fx.program.program import Program
from afm_fx.runtime import onnx_export
from afm_fx.runtime.onnx_export import export_onnx
from tests.io.test_output_directory import RunEndedError, ending_after


class SmallDeepFM(nn.Module):
    """Two fields and two dense features in one float matrix: FM on the fields, two linear layers beside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(3, 8)
        self.second = nn.Embedding(50, 8)
        self.hidden = nn.Linear(18, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        fields = torch.stack([self.first(x[:, 0].long()), self.second(x[:, 1].long())], dim=1)
        fm = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        deep = self.out(torch.relu(self.hidden(torch.cat([fields.flatten(1), x[:, 2:]], dim=1))))
        return torch.sigmoid(fm + deep)


class TwoTasks(nn.Module):
    """Takes a dict of features, returns a dict of predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(11, 4)
        self.click = nn.Linear(4, 1)
        self.buy = nn.Linear(4, 1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        shared = self.users(features["user_id"]) * features["age"].unsqueeze(1)
        return {"click": self.click(shared).squeeze(1), "buy": self.buy(shared).squeeze(1)}


class Untranslatable(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x.unsqueeze(1) * x.unsqueeze(2)).real


@pytest.fixture
def program() -> Program:
    torch.manual_seed(0)
    return capture(SmallDeepFM(), torch.zeros(4, 4))


def run_file(path: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: each for value, each in zip(session.get_inputs(), inputs, strict=True)})


def everything_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_the_file_computes_what_the_program_computes_at_any_batch_size(program: Program, tmp_path: Path) -> None:
    export_onnx(program, tmp_path / "model.onnx")
    for rows in (1, 5, 33):
        x = torch.cat([torch.randint(0, 3, (rows, 2)).float(), torch.randn(rows, 2)], dim=1)
        (output,) = run_file(tmp_path / "model.onnx", x.numpy())
        torch.testing.assert_close(torch.from_numpy(output), program.run(x), rtol=1e-5, atol=1e-5)


class Squeezes(nn.Module):
    """Squeezes axes that are longer than 1, as models do that take one id and sequences alike."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(20, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.table(ids[:, 0]).squeeze(1)).squeeze((1, -1))


def test_a_squeeze_of_an_axis_that_is_not_one_is_exported(tmp_path: Path) -> None:
    program = capture(Squeezes().eval(), (torch.randint(0, 20, (4, 2)),))
    difference = export_onnx(program, tmp_path / "model.onnx").max_abs_difference
    assert difference is not None
    assert difference < 1e-5


def test_the_report_tells_what_is_in_the_file(program: Program, tmp_path: Path) -> None:
    report = export_onnx(program, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert report.path == tmp_path / "model.onnx"
    assert report.data_path is None
    assert report.bytes == report.path.stat().st_size
    assert report.node_count == len(proto.graph.node)
    assert dict(report.operators)["Gather"] == sum(node.op_type == "Gather" for node in proto.graph.node) > 0
    assert report.parameters == program.parameter_count() == 3 * 8 + 50 * 8 + 18 * 16 + 16 + 16 + 1
    assert report.opset == proto.opset_import[0].version
    assert report.max_abs_difference is not None
    assert report.max_abs_difference <= 1e-5
    assert len(report.checked_rows) > 1
    assert any(rows != 4 for rows in report.checked_rows)
    assert "model.onnx" in report.table()
    assert "Gather" in report.table()


def test_inputs_and_outputs_are_named_and_the_free_axis_is_called_batch(program: Program, tmp_path: Path) -> None:
    report = export_onnx(program, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert report.inputs == ("x",)
    assert report.outputs == ("output",)
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "first.weight" in {initializer.name for initializer in proto.graph.initializer}


def test_dict_inputs_and_outputs_keep_their_keys(tmp_path: Path) -> None:
    model = TwoTasks()
    program = capture(model, {"user_id": torch.zeros(3, dtype=torch.int64), "age": torch.ones(3)})
    report = export_onnx(program, tmp_path / "tasks.onnx")
    assert report.inputs == ("user_id", "age")
    assert report.outputs == ("click", "buy")
    features = {"user_id": torch.tensor([10, 0]), "age": torch.tensor([0.5, 2.0])}
    click, buy = run_file(report.path, features["user_id"].numpy(), features["age"].numpy())
    expected = model(features)
    torch.testing.assert_close(torch.from_numpy(click), expected["click"].detach())
    torch.testing.assert_close(torch.from_numpy(buy), expected["buy"].detach())


def test_names_of_several_outputs_are_told_apart_from_inputs(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
            return output + 1, output * 2

    report = export_onnx(capture(Pair(), torch.randn(3, 2)), tmp_path / "pair.onnx")
    assert report.inputs == ("output",)
    assert report.outputs == ("output_0", "output_1")


def test_float64_is_exported_as_float64_and_agrees_to_its_own_precision(program: Program, tmp_path: Path) -> None:
    report = export_onnx(program.to(torch.float64), tmp_path / "double.onnx")
    (output,) = run_file(report.path, np.zeros((3, 4)))
    assert output.dtype == np.float64
    assert report.max_abs_difference is not None
    assert report.max_abs_difference <= 1e-9


def test_weights_beyond_the_limit_go_to_a_second_file(program: Program, tmp_path: Path) -> None:
    inside = export_onnx(program, tmp_path / "inside.onnx")
    outside = export_onnx(program, tmp_path / "outside.onnx", external_data_bytes=1000)
    assert outside.data_path == tmp_path / "outside.onnx.data"
    assert outside.bytes == outside.path.stat().st_size + outside.data_path.stat().st_size
    assert outside.path.stat().st_size < inside.bytes
    x = np.array([[2, 49, 0.3, -1]], dtype=np.float32)
    np.testing.assert_array_equal(run_file(outside.path, x)[0], run_file(inside.path, x)[0])
    assert everything_in(tmp_path) == ["inside.onnx", "outside.onnx", "outside.onnx.data"]


def test_a_forced_export_replaces_the_file_and_its_old_external_weights(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(program, path, external_data_bytes=1000)
    export_onnx(program, path, force=True)
    assert everything_in(tmp_path) == ["model.onnx"]
    assert run_file(path, np.zeros((2, 4), dtype=np.float32))[0].shape == (2, 1)


@pytest.mark.parametrize("outside", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_forced_export_that_ends_at_any_step_leaves_the_old_model_or_the_new_one(
    program: Program, tmp_path: Path, outside: bool
) -> None:
    """In a folder with other files, whose place no other folder may take."""
    newer = capture(SmallDeepFM().eval(), program.example_args)
    x = np.array([[2, 49, 0.3, -1]], dtype=np.float32)
    limit, old = 1000 if outside else 10**9, tmp_path / "old"
    (old / "other").mkdir(parents=True)
    export_onnx(program, old / "model.onnx", external_data_bytes=1000, check=False)
    export_onnx(newer, tmp_path / "new.onnx", check=False)
    outputs = [run_file(path, x)[0] for path in (old / "model.onnx", tmp_path / "new.onnx")]
    found: list[np.ndarray] = []
    finished = False
    while not finished:
        folder = tmp_path / str(len(found))
        shutil.copytree(old, folder)
        with contextlib.suppress(RunEndedError), ending_after(len(found)):
            export_onnx(newer, folder / "model.onnx", force=True, external_data_bytes=limit, check=False)
            finished = True
        found.append(run_file(folder / "model.onnx", x)[0])
        export_onnx(newer, folder / "model.onnx", force=True, external_data_bytes=limit, check=False)
        np.testing.assert_allclose(run_file(folder / "model.onnx", x)[0], outputs[1], rtol=1e-6)
        assert len(everything_in(folder)) == (3 if outside else 2)
    same = [[bool(np.allclose(each, output, rtol=1e-6)) for output in outputs] for each in found]
    assert all(is_old != is_new for is_old, is_new in same)
    assert same[0] == [True, False]
    assert same[-1] == [False, True]
    assert len(found) > 3


@pytest.mark.parametrize("existing", ["model.onnx", "model.onnx.data"])
def test_an_existing_file_is_refused_and_left_alone(program: Program, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(OutputExistsError, match=existing):
        export_onnx(program, tmp_path / "model.onnx")
    assert everything_in(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_a_directory_is_refused_even_when_forced(program: Program, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="directory"):
        export_onnx(program, tmp_path, force=True)


def test_missing_directories_are_made(program: Program, tmp_path: Path) -> None:
    export_onnx(program, tmp_path / "new" / "deep" / "model.onnx", check=False)
    assert everything_in(tmp_path) == ["new", "new/deep", "new/deep/model.onnx"]


def test_a_program_that_onnx_cannot_express_raises_and_leaves_nothing(tmp_path: Path) -> None:
    program = capture(Untranslatable(), torch.randn(3, 2))
    with pytest.raises(ExportError, match="linalg_eig"):
        export_onnx(program, tmp_path / "new" / "model.onnx")
    assert everything_in(tmp_path) == []


def test_a_file_that_disagrees_with_torch_raises_and_leaves_the_old_one(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_text("precious")
    torch.manual_seed(1)
    other = capture(SmallDeepFM(), torch.zeros(4, 4))
    translate = onnx_export._translate
    monkeypatch.setattr(onnx_export, "_translate", lambda _: translate(other))
    with pytest.raises(ExportError, match="'output' at batch 2 differs from torch"):
        export_onnx(program, tmp_path / "model.onnx", force=True)
    assert everything_in(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "precious"


def test_an_operator_outside_the_standard_domain_is_refused(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translate = onnx_export._translate

    def with_foreign_operator(program: Program) -> Any:
        model = translate(program)
        next(node for node in model.graph if node.op_type == "Relu").domain = "com.example"
        return model

    monkeypatch.setattr(onnx_export, "_translate", with_foreign_operator)
    with pytest.raises(ExportError, match=r"com\.example::Relu"):
        export_onnx(program, tmp_path / "model.onnx", check=False)
    assert everything_in(tmp_path) == []


def test_the_same_program_gives_the_same_bytes(program: Program, tmp_path: Path) -> None:
    export_onnx(program, tmp_path / "one.onnx", check=False)
    export_onnx(program, tmp_path / "two.onnx", check=False)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_no_source_line_or_file_name_of_the_exporting_machine_is_in_the_file(program: Program, tmp_path: Path) -> None:
    content = export_onnx(program, tmp_path / "model.onnx", check=False).path.read_bytes()
    assert Path(__file__).name.encode() not in content
    assert b"def forward" not in content
    assert b"stack_trace" not in content


def test_the_export_is_silent(program: Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(program, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_size_is_exported_as_such(tmp_path: Path) -> None:
    program = capture(SmallDeepFM(), torch.zeros(4, 4), dynamic_batch=False)
    report = export_onnx(program, tmp_path / "model.onnx")
    assert report.checked_rows == (4,)
    assert onnx.load(report.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


def test_without_onnx_runtime_only_the_unchecked_export_works(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"afm-fx\[cpu\]"):
        export_onnx(program, tmp_path / "model.onnx")
    assert everything_in(tmp_path) == []
    report = export_onnx(program, tmp_path / "model.onnx", check=False)
    assert report.max_abs_difference is None
    assert "not checked" in report.table()
