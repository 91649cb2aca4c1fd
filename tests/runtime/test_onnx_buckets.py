from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import afm_fx
from afm_fx.errors import ExportError, OutputExistsError, UserError
from afm_fx.runtime.artifact import existing_buckets
from afm_fx.runtime.onnx_export import ExportReport, export_onnx
from tests.passes.serving.test_pack_tables import Wide, wide_inputs
from tests.zoo.models import captured

SIZES = (1, 4, 16)
Exported = tuple[afm_fx.Program, tuple[ExportReport, ...]]


def wide_program() -> afm_fx.Program:
    return afm_fx.capture(Wide((64,) * 6).eval(), wide_inputs(3)[0].float())


def run(path: Path, *inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {value.name: each.numpy() for value, each in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def external(path: Path) -> dict[str, dict[str, str]]:
    model = onnx.load(path, load_external_data=False)
    return {
        each.name: {entry.key: entry.value for entry in each.external_data}
        for each in model.graph.initializer
        if each.data_location == onnx.TensorProto.EXTERNAL
    }


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    program = wide_program()
    return program, afm_fx.export_onnx_buckets(program, tmp_path_factory.mktemp("buckets") / "model.onnx", SIZES)


def test_all_files_refer_to_one_file_of_weights(buckets: Exported, tmp_path: Path) -> None:
    program, exports = buckets
    shared = exports[0].data_path
    assert shared is not None
    directory = shared.parent
    names = [f"model.batch_{size}.onnx" for size in SIZES]
    assert sorted(each.name for each in directory.iterdir()) == sorted([*names, "model.weights.data"])
    places = [external(export.path) for export in exports]
    assert places[0]
    assert all(each == places[0] for each in places)
    assert {entry["location"] for entry in places[0].values()} == {"model.weights.data"}
    single = export_onnx(program, tmp_path / "single.onnx", check=False)
    weights = shared.stat().st_size
    assert 0.6 * single.bytes < weights < single.bytes
    graphs = sum(export.bytes - weights for export in exports)
    assert weights + graphs == sum(file.stat().st_size for file in directory.iterdir())
    assert graphs < len(SIZES) * (single.bytes - weights) * 1.1  # no weights in them


def test_every_file_computes_what_the_dynamic_file_does_and_refuses_other_batches(
    buckets: Exported, tmp_path: Path
) -> None:
    program, exports = buckets
    dynamic = export_onnx(program, tmp_path / "dynamic.onnx", check=False).path
    for size, export in zip(SIZES, exports, strict=True):
        x = wide_inputs(size)[0].float()
        torch.testing.assert_close(run(export.path, x), run(dynamic, x), rtol=1e-6, atol=1e-6)
        assert export.checked_rows == (size,)
        assert export.max_abs_difference is not None
        with pytest.raises(Exception, match="invalid dimensions"):
            run(export.path, wide_inputs(size + 1)[0].float())
    assert exports[1].line().startswith("model.batch_4.onnx: ")
    assert {export.data_path for export in exports} == {exports[0].path.with_name("model.weights.data")}


def test_no_shape_in_a_bucket_is_symbolic(buckets: Exported) -> None:
    for export in buckets[1]:
        model = onnx.shape_inference.infer_shapes(onnx.load(export.path), strict_mode=True)
        values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
        assert len(values) > len(model.graph.node) // 2
        for value in values:
            assert all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim), value.name


def test_a_static_export_takes_one_batch_size(tmp_path: Path) -> None:
    program = wide_program()
    report = export_onnx(program, tmp_path / "model.onnx", batch_size=5)
    assert report.checked_rows == (5,)
    assert onnx.load(report.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 5
    x = wide_inputs(5)[0].float()
    torch.testing.assert_close(run(report.path, x), program.run(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rows"), [("DIN", 1), ("CCPM", 3), ("DLRM-bags", 1), ("BehaviourTransformer", 3), ("TwoTowerModel", 1)]
)
def test_models_of_the_zoo_export_with_static_shapes(name: str, rows: int, tmp_path: Path) -> None:
    program = captured(name)[1]
    report = export_onnx(afm_fx.pack(program, inputs="typed").program, tmp_path / "model.onnx", batch_size=rows)
    assert report.max_abs_difference is not None
    for value in onnx.load(report.path).graph.input:
        assert all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)


def test_a_program_of_a_fixed_batch_takes_no_other(tmp_path: Path) -> None:
    program = afm_fx.capture(Wide().eval(), wide_inputs(3)[0].float(), dynamic_batch=False)
    assert export_onnx(program, tmp_path / "model.onnx", batch_size=3).checked_rows == (3,)
    with pytest.raises(UserError, match="fixed batch of 3, it cannot take 4 rows"):
        export_onnx(program, tmp_path / "other.onnx", batch_size=4)
    with pytest.raises(UserError, match="at least 1"):
        export_onnx(wide_program(), tmp_path / "other.onnx", batch_size=0)


@pytest.mark.parametrize("sizes", [(), (0, 1), (4, 4)])
def test_impossible_buckets_are_refused(sizes: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different batch sizes of at least 1"):
        afm_fx.export_onnx_buckets(wide_program(), tmp_path / "model.onnx", sizes)


def test_existing_buckets_are_replaced_all_together_and_only_with_force(tmp_path: Path) -> None:
    program, path = wide_program(), tmp_path / "model.onnx"
    afm_fx.export_onnx_buckets(program, path, (2, 3), check=False)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(OutputExistsError, match="exists already"):
        afm_fx.export_onnx_buckets(program, path, (5,), check=False)
    with pytest.raises(ExportError, match="differs from torch"):
        afm_fx.export_onnx_buckets(program, path, (5,), force=True, tolerance=-1.0)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    afm_fx.export_onnx_buckets(program, path, (5,), check=False, force=True)
    assert [each.name for each in existing_buckets(path)] == ["model.batch_5.onnx"]
