"""Sessions compute what torch computes at any batch size, on the provider asked for, or say why not."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import BatchError, FileFormatError, MissingPackageError, ProviderError, UserError
from afm_fx.runtime.onnx_runtime import KINDS, Provider
from afm_fx.runtime.session import Session, cuts
from tests.passes.serving.test_pack_tables import SIZES as FIELD_SIZES, Wide, wide_inputs

onnxruntime = pytest.importorskip("onnxruntime")
from afm_fx.runtime.bucket import Slot  # noqa: E402 - what is above must be there
from tests.fake_cuda_runtime import FakeRuntime  # noqa: E402 - the same

ITEMS, LENGTH = 30, 5
BUCKETS = (1, 4, 16)


class Shop(nn.Module):
    """Two ids, dense features and a history, whose items other than 0 are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, 6)
        self.first = nn.Linear(3 * 6 + 2, 8)
        self.last = nn.Linear(8, 1)

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        mask = (history != 0).unsqueeze(-1).float()
        pooled = (self.items(history) * mask).sum(1) / mask.sum(1).clamp(min=1)
        features = torch.cat([self.items(ids).flatten(1), pooled, dense], dim=1)
        return torch.sigmoid(self.last(torch.relu(self.first(features))))


class Tasks(nn.Module):
    """Two predictions a row, and what the batch as a whole has nothing to do with."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        both = self.tasks(x)
        return {"click": both[:, 0], "buy": both[:, 1:], "bias": self.tasks.bias * 2}


def shop_batch(rows: int) -> dict[str, Tensor]:
    history = torch.randint(1, ITEMS, (rows, LENGTH))
    history[:, 3:] = 0
    return {"ids": torch.randint(0, ITEMS, (rows, 2)), "dense": torch.rand(rows, 2), "history": history}


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    torch.manual_seed(1)
    return afm_fx.capture(Shop().eval(), shop_batch(3))


@pytest.fixture(scope="module")
def folder(program: afm_fx.Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``shop.onnx`` with a free batch size, and bucket files of the same name."""
    folder = tmp_path_factory.mktemp("shop")
    afm_fx.export_onnx(program, folder / "shop.onnx", check=False)
    afm_fx.export_onnx_buckets(program, folder / "shop.onnx", BUCKETS, check=False)
    return folder


@pytest.fixture(scope="module")
def sessions(folder: Path) -> dict[str, Session]:
    return {
        "as it is": Session(folder / "shop.onnx"),
        "padded": Session(folder / "shop.onnx", buckets=(16, 1, 4)),
        "bucket files": Session(folder / "shop"),
    }


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[afm_fx.Program, Path]:
    program = afm_fx.capture(Tasks().eval(), torch.rand(3, 3))
    return program, afm_fx.export_onnx(program, tmp_path_factory.mktemp("tasks") / "tasks.onnx", check=False).path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    runtime = FakeRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return runtime


FORMS = ("as it is", "padded", "bucket files")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 39])
def test_a_session_computes_what_torch_does_from_one_row_to_beyond_the_largest_bucket(program, sessions, form, rows):
    batch = shop_batch(rows)
    found = sessions[form].run(batch)
    torch.testing.assert_close(found, program.run(batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_histories_of_padding_alone_compute_what_torch_does(program, sessions, form):
    batch = shop_batch(6)
    batch["history"] = torch.zeros_like(batch["history"])
    torch.testing.assert_close(sessions[form].run(batch), program.run(batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_is_refused_as_a_program_refuses_it(program, sessions, form):
    for served in (sessions[form], program):
        with pytest.raises(BatchError, match=r"the batch is empty \(0 rows\)"):
            served.run(shop_batch(0))


def test_batch_sizes_of_a_session(sessions):
    assert [sessions[form].batch_sizes for form in FORMS] == [(), BUCKETS, BUCKETS]


def test_the_smallest_bucket_that_holds_a_batch_runs_it_and_larger_batches_are_cut(sessions, monkeypatch):
    session = sessions["padded"]
    runs: list[tuple[int, int]] = []
    for bucket in session._buckets:

        def noted(tensors: Any, rows: int, run: Any = bucket.run, size: int = bucket.rows) -> Any:
            runs.append((size, rows))
            return run(tensors, rows)

        monkeypatch.setattr(bucket, "run", noted)
    for rows in (1, 2, 4, 5, 16, 33):
        session.run(shop_batch(rows))
    assert runs == [(1, 1), (4, 2), (4, 4), (16, 5), (16, 16), (16, 16), (16, 16), (1, 1)]


@pytest.mark.parametrize(("rows", "pieces"), [(1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_cuts_cover_a_batch_without_gaps(rows, pieces):
    found = list(cuts(rows, 16))
    assert len(found) == pieces
    assert [row for start, end in found for row in range(start, end)] == list(range(rows))


def test_a_batch_is_padded_with_its_last_row(sessions):
    session, batch = sessions["padded"], shop_batch(2)
    session.run(batch)
    (bucket,) = [each for each in session._buckets if each.rows == 4]
    for slot in bucket._inputs:
        wanted = batch[slot.value.name].numpy()
        assert np.array_equal(slot.host, wanted[[0, 1, 1, 1]])


def test_a_result_is_not_overwritten_by_the_next_batch(sessions):
    for session in sessions.values():
        first = session.run(shop_batch(4))
        kept = first.clone()
        session.run(shop_batch(4))
        assert torch.equal(first, kept)


def test_many_threads_share_a_session(program, sessions):
    session = sessions["padded"]
    batches = [shop_batch(1 + seed % 7) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(session.run, batches))
    for batch, output in zip(batches, found, strict=True):
        torch.testing.assert_close(output, program.run(batch), rtol=1e-6, atol=1e-6)


def test_inputs_come_by_name_or_by_position(sessions):
    session, batch = sessions["padded"], shop_batch(3)
    by_name = session.run(dict(reversed(batch.items())))
    assert torch.equal(session.run(tuple(batch.values())), by_name)


def test_inputs_and_outputs_are_described(sessions):
    for form in FORMS:
        session = sessions[form]
        assert [(each.name, each.dtype, each.shape[1:], each.batched) for each in session.inputs] == [
            ("ids", "int64", (2,), True), ("dense", "float32", (2,), True), ("history", "int64", (LENGTH,), True),
        ]  # fmt: skip
        assert [(each.name, each.dtype, each.shape[1:]) for each in session.outputs] == [("output", "float32", (1,))]
    assert sessions["as it is"].inputs[0].line() == "ids: int64 [batch, 2]"
    assert "batch sizes 1, 4, 16" in repr(sessions["padded"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda b: {"idz" if k == "ids" else k: v for k, v in b.items()}, r"missing \['ids'\], unexpected \['idz'\]"),
        (lambda b: {"ids": b["ids"]}, r"missing \['dense', 'history'\], unexpected \[\]"),
        (lambda b: (b["ids"], b["dense"]), r"takes 3 inputs \(ids, dense, history\), the batch holds 2"),
        (lambda b: {**b, "dense": b["dense"][:, :1]}, r"takes input 'dense' as float32 \[\w+, 2\].*holds.*\[3, 1\]"),
        (lambda b: {**b, "dense": b["dense"].double()}, r"input 'dense' as float32.*holds float64"),
        (lambda b: {**b, "ids": b["ids"].int()}, r"input 'ids' as int64.*holds int32"),
        (lambda b: {**b, "ids": b["ids"][:2]}, r"inputs disagree on it: \{'ids': 2, 'dense': 3, 'history': 3\}"),
        (lambda b: {**b, "ids": [1, 2]}, r"takes input 'ids' as a tensor, the batch holds a list"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_told(sessions, form, spoil, says):
    with pytest.raises(BatchError, match=says):
        sessions[form].run(spoil(shop_batch(3)))


@pytest.mark.parametrize("form", FORMS)
def test_an_id_beyond_its_table_is_told_and_the_session_serves_on(program, sessions, form):
    batch = shop_batch(3)
    batch["ids"][1, 0] = ITEMS
    with pytest.raises(BatchError, match=r"fails on a batch of 'shop.*out of data bounds"):
        sessions[form].run(batch)
    good = shop_batch(3)
    torch.testing.assert_close(sessions[form].run(good), program.run(good), rtol=1e-6, atol=1e-6)


def test_several_outputs_come_by_name_and_what_has_no_batch_axis_comes_whole(tasks):
    program, path = tasks
    x = torch.rand(3, 3)
    wanted = program.run(x)
    for session in (Session(path), Session(path, buckets=(8,))):
        found = session.run(x)
        assert isinstance(found, dict)
        assert list(found) == ["click", "buy", "bias"]
        for name, output in found.items():
            torch.testing.assert_close(output, wanted[name])


def test_a_batch_is_not_cut_where_an_output_has_no_batch_axis(tasks):
    with pytest.raises(BatchError, match=r"cannot run 9 rows in pieces of 8: output 'bias' has no batch axis"):
        Session(tasks[1], buckets=(8,)).run(torch.rand(9, 3))


def test_typed_files_take_typed_inputs_and_the_originals(tmp_path):
    program = afm_fx.capture(Wide().eval(), wide_inputs(3)[0].float())
    typed = afm_fx.pack(program, inputs="typed").program
    path = afm_fx.export_onnx(typed, tmp_path / "typed.onnx", check=False).path
    for session in (Session(path), Session(path, buckets=(2, 8))):
        x = wide_inputs(11)[0].float()
        wanted = program.run(x)
        torch.testing.assert_close(session.run(x), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(session.run(typed.convert_inputs(x)), wanted, rtol=1e-5, atol=1e-5)
        x[7, 2] = FIELD_SIZES[2]
        with pytest.raises(BatchError, match=r"row 7: id .* of input 'x', column 2 is outside table 'tables\.2'"):
            session.run(x)
        with pytest.raises(BatchError, match=r"takes inputs \['sparse', 'dense'\], or the original's \['x'\]"):
            session.run({"wrong": x})


def test_paths_that_stand_for_nothing_are_told(folder, tmp_path):
    with pytest.raises(FileFormatError, match=r"there is no file '.*none', and no bucket files 'none.batch_\*.onnx'"):
        Session(folder / "none")
    with pytest.raises(FileFormatError, match="no bucket files"):
        Session(tmp_path)


def test_bucket_files_of_different_exports_are_refused(folder, tasks, tmp_path):
    for size in (1, 4):
        name = f"shop.batch_{size}.onnx"
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "shop.weights.data").write_bytes((folder / "shop.weights.data").read_bytes())
    Session(tmp_path / "shop")
    afm_fx.export_onnx(tasks[0], tmp_path / "shop.batch_2.onnx", batch_size=2, check=False)
    with pytest.raises(FileFormatError, match="are of different exports"):
        Session(tmp_path / "shop")


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"provider": "gpu"}, ProviderError, "no provider 'gpu'; there are cpu, cuda, tensorrt, openvino"),
        ({"cuda_graph": True}, ProviderError, "CUDA graphs need the provider 'cuda' or 'tensorrt'"),
        ({"buckets": ()}, UserError, "different batch sizes of at least 1"),
        ({"buckets": (4, 4)}, UserError, "different batch sizes of at least 1"),
        ({"threads": 0}, UserError, "threads must be at least 1"),
    ],
)
def test_impossible_settings_are_told(folder, settings, error, says):
    with pytest.raises(error, match=says):
        Session(folder / "shop.onnx", **settings)


def test_bucket_files_take_no_other_buckets(folder):
    with pytest.raises(UserError, match="takes batches of 1, 4, 16 rows and no others"):
        Session(folder / "shop", buckets=(1, 8))
    assert Session(folder / "shop", buckets=BUCKETS).batch_sizes == BUCKETS


# Providers


@pytest.mark.parametrize(
    ("provider", "install"),
    [("cuda", r"install afm-fx\[gpu\]"), ("tensorrt", "tensorrt"), ("openvino", "onnxruntime-openvino")],
)
def test_a_provider_that_is_not_there_is_told_with_what_is_and_what_to_install(folder, provider, install):
    if KINDS[Provider(provider)].name in onnxruntime.get_available_providers():
        pytest.skip(f"{provider} is here")
    with pytest.raises(ProviderError, match=rf"'{provider}' is not in the installed .* has cpu; .*{install}"):
        Session(folder / "shop.onnx", provider)


def test_without_onnx_runtime_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"install afm-fx\[cpu\] or afm-fx\[gpu\]"):
        Session(folder / "shop.onnx")


@pytest.mark.parametrize("form", FORMS)
def test_on_a_device_a_session_computes_what_torch_does(program, folder, fake, form):
    path = folder / ("shop" if form == "bucket files" else "shop.onnx")
    session = Session(path, "cuda", buckets=BUCKETS if form == "padded" else None, device_id=3)
    for rows in (1, 3, 16, 17):
        batch = shop_batch(rows)
        torch.testing.assert_close(session.run(batch), program.run(batch), rtol=1e-6, atol=1e-6)
    assert all(each.asked == [("CUDAExecutionProvider", {"device_id": "3"})] for each in fake.opened)
    for bucket in session._buckets:
        assert {slot.memory.device for slot in (*bucket._inputs, *bucket._outputs)} == {("cuda", 3)}


@pytest.mark.parametrize("path", ["shop.onnx", "shop"])
def test_every_bucket_replays_a_cuda_graph_of_its_own_at_the_addresses_it_was_recorded_at(program, folder, fake, path):
    session = Session(folder / path, "cuda", buckets=BUCKETS, cuda_graph=True)
    assert all(each.asked[0][1]["enable_cuda_graph"] == "1" for each in fake.opened)
    assert fake.graphs == [graph for bucket in "123" for graph in ("-1", bucket, bucket, bucket)]
    fake.graphs.clear()
    places = [dict(bucket._binding.bound) for bucket in session._buckets]
    for rows in (1, 3, 16, 2):
        batch = shop_batch(rows)
        torch.testing.assert_close(session.run(batch), program.run(batch), rtol=1e-6, atol=1e-6)
    assert fake.graphs == ["1", "2", "3", "2"]
    assert places == [bucket._binding.bound for bucket in session._buckets]


def test_a_cuda_graph_without_buckets_is_refused(folder, fake):
    with pytest.raises(UserError, match=r"a CUDA graph has one batch size: give buckets"):
        Session(folder / "shop.onnx", "cuda", cuda_graph=True)


def test_a_provider_that_does_not_start_is_no_reason_to_use_the_cpu(folder, fake):
    fake.starts = False
    with pytest.raises(ProviderError, match=r"'cuda' could not be started.* would run .* on CPUExecution"):
        Session(folder / "shop.onnx", "cuda")


def test_operators_left_to_the_cpu_are_refused_unless_they_compute_shapes(folder, fake):
    import onnx

    graph = onnx.load(folder / "shop.onnx").graph
    gather = next(node.name for node in graph.node if node.op_type == "Gather" and "items" in str(node.input))
    fake.left_to_cpu = (gather,)
    with pytest.raises(ProviderError, match=rf"does not run all of .*1 operators would run on the CPU \({gather}\)"):
        Session(folder / "shop.onnx", "cuda")
    assert fake.opened[-1].options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    fake.left_to_cpu = tuple(node.name for node in graph.node if node.op_type == "Shape")
    Session(folder / "shop.onnx", "cuda")


def test_a_release_that_cannot_tell_who_runs_what_is_told_to_leave_nothing_to_the_cpu(folder, fake):
    del fake.InferenceSession.get_provider_graph_assignment_info
    Session(folder / "shop.onnx", "cuda")
    assert fake.opened[-1].options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_rows_on_the_device_are_copied_without_a_way_over_the_host():
    """On the CPU, whose memory ONNX Runtime and torch share as they share a GPU's."""
    from afm_fx.runtime.artifact import FileValue

    slot = Slot(
        onnxruntime, FileValue("x", "float32", ("batch", 2), True), np.zeros((4, 2), np.float32), torch.device("cpu")
    )
    rows = torch.rand(2, 4).t()[:3]
    slot.write_on_device(rows)
    assert torch.equal(torch.from_numpy(slot.memory.numpy()), rows[[0, 1, 2, 2]])


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not torch.cuda.is_available(),
    reason="no CUDA here",
)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu_a_session_computes_what_torch_does(program, folder, cuda_graph):
    session: Any = Session(folder / "shop.onnx", "cuda", buckets=BUCKETS, cuda_graph=cuda_graph)
    for rows in (1, 3, 16, 17):
        batch = shop_batch(rows)
        torch.testing.assert_close(session.run(batch), program.run(batch), rtol=1e-4, atol=1e-5)
        found = session.run({name: each.cuda() for name, each in batch.items()})
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), program.run(batch), rtol=1e-4, atol=1e-5)
