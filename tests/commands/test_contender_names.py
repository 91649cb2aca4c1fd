"""How the command line names contenders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from afm_fx.commands.contender_names import contender_inputs, parse_contenders
from afm_fx.errors import BenchmarkError, UserError
from afm_fx.measure.contenders import ModelFactory, OnnxFile, make_contender
from afm_fx.program.capture import capture
from afm_fx.program.user_model import build_model
from afm_fx.runtime.onnx_export import export_onnx

MODEL = """
import torch
from torch import nn

class Clicks(nn.Module):
    def __init__(self):
        super().__init__()
        self.item, self.last = nn.Embedding(60, 8), nn.Linear(9, 1)

    def forward(self, item, price):
        return self.last(torch.cat([self.item(item), price.unsqueeze(1)], dim=1))

def clicks():
    torch.manual_seed(0)
    return Clicks(), (torch.tensor([0, 1]), torch.rand(2))
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of models in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named_shop.py").write_text(MODEL)
    monkeypatch.delitem(sys.modules, "named_shop", raising=False)
    return "named_shop"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with files that nobody opens."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.onnx", "y.onnx", "x.pt2"):
        (tmp_path / name).write_bytes(b"")


@pytest.mark.usefixtures("files")
def test_files_take_a_provider_and_models_take_compile() -> None:
    found = parse_contenders(["a=x.onnx", "b=x.onnx@tensorrt", "c=x.pt2", "d=m:f", "e=m:f@compile"], Path("w.pt"))
    assert found == {
        "a": OnnxFile(Path("x.onnx"), "cpu"),
        "b": OnnxFile(Path("x.onnx"), "tensorrt"),
        "c": Path("x.pt2"),
        "d": ModelFactory("m:f", Path("w.pt")),
        "e": ModelFactory("m:f", Path("w.pt"), compiled=True),
    }


def test_a_file_with_an_at_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a@b.onnx"
    path.write_bytes(b"")
    assert parse_contenders([f"a={path}"]) == {"a": OnnxFile(path)}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["x.onnx"], "given as NAME=FILE"),
        (["a=x.onnx", "a=y.onnx"], "a name is given to two files"),
        (["a=m:f@fast"], "a model runs as it is, or with @compile"),
        (["a=x.pt2@cuda"], "compiled for its device"),
        (["a=x.onnx", "b=z.onnx@cuda"], "there is no file 'z.onnx'"),
        (["a=z.pt2"], "there is no file 'z.pt2'"),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_is_not_of_this_form_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_contenders(texts)


def test_a_model_runs_what_an_exported_file_beside_it_takes(shop: str, tmp_path: Path) -> None:
    factory = ModelFactory(f"{shop}:clicks")
    model, example = build_model(factory.name)
    file = OnnxFile(export_onnx(capture(model, example), tmp_path / "clicks.onnx", check=False).path)
    inputs = contender_inputs({"eager": factory, "file": file}, None, rows=5)
    assert {name: (value.dtype, value.shape) for name, value in inputs.items()} == {
        "item": (torch.int64, (5,)), "price": (torch.float32, (5,))
    }  # fmt: skip
    torch.testing.assert_close(make_contender("eager", factory, 1).prepare(inputs)(), model(**inputs))


def test_models_alone_are_refused(shop: str) -> None:
    factory = ModelFactory(f"{shop}:clicks")
    with pytest.raises(BenchmarkError, match="enter an exported file beside them"):
        contender_inputs({"eager": factory}, None, rows=5)
