"""Load time and memory of one contender, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afm_fx.benchmark import benchmark
from afm_fx.capture import capture
from afm_fx.contenders import OnnxFile
from afm_fx.errors import BenchmarkError
from afm_fx.footprint import _described as described
from afm_fx.footprint import competitor_of, measure_footprint
from afm_fx.model_contender import ModelFactory
from afm_fx.onnx_export import export_onnx

ROWS, WIDTH = 400_000, 16
TABLE = 4 * ROWS * WIDTH


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.randn(ROWS, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells of memory")
def test_a_file_takes_at_least_its_weights_and_no_more_than_a_few_times_them(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = export_onnx(capture(Table(), torch.tensor([0, 1, 2])), tmp_path / "table.onnx", check=False).path
    result = benchmark(
        {"file": path, "callable": lambda ids: ids}, torch.tensor([5, 6, 7, 8]), batch_sizes=(2, 4), seconds=0.01,
        min_repeats=2, max_repeats=2, rounds=1, memory=True,
    )  # fmt: skip
    (found,) = result.footprints  # a callable of this process is not to be had in another
    assert found.contender == "file"
    assert found.host_loaded is not None
    assert found.host_peak is not None
    assert 0.9 * TABLE < found.host_loaded <= found.host_peak < 4 * TABLE
    assert found.load_seconds > 0
    assert found.device_loaded is found.device_peak is None


def test_what_fails_in_the_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_fx.footprint.PROCESS", "no_such_module")
    with pytest.raises(BenchmarkError, match=r"'dense' fails in a process of its own: .*no_such_module"):
        measure_footprint("dense", "dense.onnx", [torch.randn(2, 3)], 1)


@pytest.mark.parametrize(
    "competitor",
    [OnnxFile(Path("/a/b.onnx"), "cuda"), ModelFactory("shop.models:ctr", Path("/a/c.pt"), compiled=True)],
)
def test_a_competitor_arrives_in_the_process_as_it_was(competitor: OnnxFile | ModelFactory) -> None:
    assert competitor_of(described(competitor)) == competitor
