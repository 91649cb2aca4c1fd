"""Typed inputs and buckets from the command line: compress a model that takes one float matrix, then time its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from afm_fx.commands.cli import app

MODEL = """
import torch
from torch import nn

class Clicks(nn.Module):
    def __init__(self):
        super().__init__()
        self.item, self.user = nn.Embedding(60, 8), nn.Embedding(40, 8)
        self.first, self.last = nn.Linear(17, 32), nn.Linear(32, 1)

    def forward(self, x):
        features = [self.item(x[:, 0].long()), self.user(x[:, 1].long()), x[:, 2:]]
        return self.last(self.first(torch.cat(features, dim=1)).relu()).sigmoid()

def clicks():
    torch.manual_seed(0)
    return Clicks(), torch.zeros(2, 3)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and its rows."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "matrix_shop.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "matrix_shop", raising=False)
    random = np.random.default_rng(0)
    ids = [random.integers(0, size, 200) for size in (60, 40)]
    np.save(tmp_path / "rows.npy", np.stack([*ids, random.random(200)], axis=1))
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def compress(*options: str) -> Any:
    return run(
        "compress", "matrix_shop:clicks", "--data", "rows.npy", "--out", "out", "--ranks", "Embedding=2", *options
    )


def input_names(path: Path) -> list[str]:
    return [value.name for value in onnx.load(path).graph.input]


@pytest.mark.parametrize("packing", ["--pack", "--no-pack"])
def test_compress_writes_a_typed_model_that_bench_compares_with_the_dense_one(shop: Path, packing: str) -> None:
    result = compress("--inputs", "typed", packing)
    assert result.exit_code == 0, result.output
    assert input_names(shop / "out/low_rank.onnx") == ["sparse", "dense"]
    assert input_names(shop / "out/dense.onnx") == ["x"]
    files = ["dense=out/dense.onnx", "typed=out/low_rank.onnx"]
    for traffic in ([], ["--inputs", "rows.npy"]):
        timed = run("bench", *files, *traffic, "--batch-sizes", "1,4", "--seconds", "0.01")
        assert timed.exit_code == 0, timed.output
        assert "typed" in timed.output


def test_compress_writes_buckets_and_replaces_those_of_an_earlier_run(shop: Path) -> None:
    assert compress("--buckets", "1,8").exit_code == 0
    names = {path.name for path in (shop / "out").iterdir()}
    assert {"low_rank.batch_1.onnx", "low_rank.batch_8.onnx", "low_rank.weights.data", "low_rank.onnx"} <= names
    report = json.loads((shop / "out/report.json").read_text())
    assert [each["file"] for each in report["buckets"]] == ["low_rank.batch_1.onnx", "low_rank.batch_8.onnx"]
    refused = compress("--buckets", "4")
    assert refused.exit_code == 2
    assert "exists already" in refused.output
    result = compress("--buckets", "4", "--force")
    assert result.exit_code == 0, result.output
    assert "low_rank.batch_4.onnx" in result.output
    assert [path.name for path in sorted((shop / "out").glob("*batch*"))] == ["low_rank.batch_4.onnx"]


@pytest.mark.parametrize("buckets", ["0,1", "2,2", "two"])
def test_impossible_buckets_are_told_before_any_work(shop: Path, buckets: str) -> None:
    result = compress("--buckets", buckets)
    assert result.exit_code == 2
    assert "batch sizes" in result.output or "buckets are whole numbers" in result.output
    assert not (shop / "out").exists()
