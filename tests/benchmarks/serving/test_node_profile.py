from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.serving.floor import COLUMNS, Profile, node_rows, summary
from benchmarks.serving.node_profile import Peak, node_times

pytest.importorskip("onnxruntime")
ROWS = 4


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Five ids per row, read from a table 3 wide, and a Linear with a ReLU."""
    folder = tmp_path_factory.mktemp("profile")
    weights = {"table": np.ones((9, 3), np.float32), "w": np.ones((15, 7), np.float32), "flat": np.array([-1, 15])}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Reshape", ["rows", "flat"], ["features"]),
            helper.make_node("MatMul", ["features", "w"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["result"]),
        ],
        "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 5])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["batch", 7])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    ids = {"ids": np.zeros((ROWS, 5), np.int64)}
    nodes = node_times(path, ids, Path(folder), repeats=3, warmup=1)
    return Profile(ROWS, Peak(multiply_adds_per_us=100.0, bytes_per_us=24.0), 50.0, tuple(nodes))


def test_work_is_counted_from_the_shapes_that_the_runtime_saw(profile: Profile) -> None:
    work = {node.operator: (node.multiply_adds, node.gathered_bytes) for node in profile.nodes}
    assert work["MatMul"] == (ROWS * 15 * 7, 0)
    assert work["Gather"] == (0, ROWS * 5 * 3 * 4)
    assert work["Relu"] == (0, 0)


def test_the_floor_is_work_over_rate_and_the_page_gives_it(profile: Profile) -> None:
    assert profile.floor_us == pytest.approx(ROWS * 15 * 7 / 100 + ROWS * 5 * 3 * 4 / 24)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in node_rows(profile)]
    assert [row["floor us"] for row in rows if row["operator"] == "Gather"] == ["10.0"]
    assert "Floor 14.2 us at 0.2 GFLOP/s" in summary(profile)
