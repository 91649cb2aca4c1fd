"""Load time and memory of one contender, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afm_fx.benchmark import benchmark
from afm_fx.capture import capture
from afm_fx.errors import BenchmarkError, MissingPackageError
from afm_fx.memory import measure_memory
from afm_fx.onnx_export import export_onnx

ROWS, WIDTH = 400_000, 16
TABLE = 4 * ROWS * WIDTH


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.randn(ROWS, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(1)


def test_a_file_takes_at_least_its_weights_and_no_more_than_a_few_times_them(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("psutil")
    path = export_onnx(capture(Table(), torch.tensor([0, 1, 2])), tmp_path / "table.onnx", check=False).path
    result = benchmark(
        {"file": path, "callable": lambda ids: ids}, torch.tensor([5, 6, 7, 8]), batch_sizes=(2, 4), seconds=0.01,
        rounds=1, memory=True,
    )  # fmt: skip
    (memory,) = result.memory  # a callable of this process is not to be had in another
    assert memory.contender == "file"
    assert 0.9 * TABLE < memory.loaded_bytes < 4 * TABLE
    assert 0.9 * TABLE < memory.serving_bytes < 4 * TABLE
    assert memory.load_seconds > 0
    assert memory.first_call_seconds > 0
    assert "MB serving" in result.table()


def test_what_fails_in_the_process_is_told() -> None:
    pytest.importorskip("psutil")
    with pytest.raises(BenchmarkError, match=r"'dense' fails in a process of its own: .*no ONNX file 'dense.onnx'"):
        measure_memory("dense", "dense.onnx", [torch.randn(2, 3)], 1)


def test_without_psutil_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"install afm-fx\[memory\]"):
        measure_memory("dense", "dense.onnx", [torch.randn(2, 3)], 1)
