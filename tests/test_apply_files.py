"""A plan applied to files is the plan applied in memory, block by block; it is whole or absent, and can be resumed."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import afm_fx
from afm_fx.absent_tables import storage_of, without_tables
from afm_fx.apply_files import apply_to_files, write_tables
from afm_fx.checkpoints import Checkpoint, open_checkpoint
from afm_fx.errors import FileFormatError, ModelError, OutputExistsError, PlanError, UserError
from afm_fx.streamed_plan import StreamedPlan, TableSource, streamed_plan
from afm_fx.table_folder import INDEX, PARTIAL, locked
from tests.streamed_models import (
    LARGE,
    EveryTable,
    every_table,
    every_table_plan,
    ids_of,
    save_sharded,
    wide_and_deep_model,
    wide_and_deep_plan,
)
from tests.wide_and_deep import rows_of_ids

Factory = Callable[[], tuple[nn.Module, tuple[Tensor]]]
MODELS: dict[str, tuple[Factory, Callable[[afm_fx.Program], afm_fx.Plan], Tensor]] = {
    "every table": (every_table, every_table_plan, ids_of(30, seed=8)),
    "joint tables and dropped units": (wide_and_deep_model, wide_and_deep_plan, rows_of_ids(30, seed=8)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a plan for it, and what applying the plan in memory gives."""

    factory: Factory
    plan: afm_fx.Plan
    rows: Tensor
    expected: afm_fx.Program

    @property
    def state(self) -> dict[str, Tensor]:
        return dict(self.factory()[0].state_dict())

    def streamed(self, checkpoint: Path) -> tuple[StreamedPlan, Checkpoint]:
        opened = open_checkpoint(checkpoint)
        return streamed_plan(without_tables(self.factory, opened, large_bytes=LARGE), self.plan), opened


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    found = {}
    for name, (factory, plan, rows) in MODELS.items():
        program = afm_fx.capture(*factory())
        planned = plan(program)
        found[name] = Case(factory, planned, rows, afm_fx.apply_plan(program, planned))
    return found


@pytest.fixture(scope="module")
def case(cases: dict[str, Case]) -> Case:
    return cases["every table"]


@pytest.fixture(scope="module")
def checkpoint(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single(case.state, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def streamed(case: Case, checkpoint: Path) -> tuple[StreamedPlan, Checkpoint]:
    return case.streamed(checkpoint)


@pytest.fixture(scope="module")
def applied(case: Case, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> afm_fx.AppliedFiles:
    out = tmp_path_factory.mktemp("applied") / "out"
    return apply_to_files(case.factory, checkpoint, case.plan, out, large_bytes=LARGE)


def single(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def sharded(state: dict[str, Tensor], folder: Path) -> Path:
    return save_sharded(state, folder / "sharded")


def distributed(state: dict[str, Tensor], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.save({"model": state, "epoch": 3}, checkpoint_id=folder / "dcp")
    return folder / "dcp"


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """What the safetensors library reads of a folder."""
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in set(index.values())}
    assert sorted(name for each in files.values() for name in each) == sorted(index)
    return {name: files[file][name] for name, file in index.items()}


class RunEndedError(RuntimeError):
    """What stands for a process that ends."""


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts encoded blocks, and interrupts the run after so many as it holds under "allowed"."""
    counted = {"encoded": 0, "allowed": 1_000}
    made = TableSource.made

    def count(self: TableSource, features: Tensor) -> Tensor:
        if counted["encoded"] == counted["allowed"]:
            raise RunEndedError
        counted["encoded"] += 1
        return made(self, features)

    monkeypatch.setattr(TableSource, "made", count)
    return counted


WRITTEN = [("every table", single), ("every table", sharded), ("every table", distributed),
           ("joint tables and dropped units", sharded)]  # fmt: skip


@pytest.mark.parametrize(("model", "write"), WRITTEN)
def test_the_files_are_the_state_dict_that_applying_the_plan_in_memory_gives(
    model: str, write: Callable[[dict[str, Tensor], Path], Path], cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases[model]
    streamed, opened = case.streamed(write(case.state, tmp_path))
    applied = write_tables(streamed, opened, case.plan, tmp_path / "out")
    found, wanted = tensors_of(tmp_path / "out"), case.expected.graph_module.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert len(applied.tables) == len(streamed.tables) >= 3
    assert torch.equal(applied.program.run((case.rows,)), case.expected.run((case.rows,)))
    assert applied.program.parameter_count() == case.expected.parameter_count()
    in_blocks = write_tables(streamed, opened, case.plan, tmp_path / "blocks", rows_per_block=7)
    assert {table.blocks for table in in_blocks.tables} <= {6, 7}
    for name, tensor in tensors_of(tmp_path / "blocks").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-7)


def test_no_large_table_has_memory_while_the_model_is_built_and_captured(checkpoint: Path) -> None:
    absent = without_tables(every_table, open_checkpoint(checkpoint), large_bytes=LARGE)
    state = absent.program.graph_module.state_dict()
    assert sorted(absent.tables) == [f"{name}.weight" for name in ("constant", "encoded", "kept", "padded", "refused")]
    for name in absent.tables:
        assert state[name].untyped_storage().nbytes() == 4
    assert torch.equal(state["first.weight"], every_table()[0].get_parameter("first.weight"))


def test_a_module_on_the_meta_device_needs_no_factory(case: Case, checkpoint: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = EveryTable()
    applied = apply_to_files(
        module, checkpoint, case.plan, tmp_path / "out", example_inputs=(ids_of(4),), large_bytes=LARGE
    )
    assert torch.equal(applied.program.run((case.rows,)), case.expected.run((case.rows,)))


def test_an_interrupted_run_leaves_nothing_visible_and_goes_on_where_it_was(
    case: Case, streamed: tuple[StreamedPlan, Checkpoint], tmp_path: Path, blocks: dict[str, int]
) -> None:
    out = tmp_path / "out"
    total = sum(-(-source.rows // 7) for source in streamed[0].tables)
    blocks["allowed"] = 9
    with pytest.raises(RunEndedError):
        write_tables(*streamed, case.plan, out, rows_per_block=7, sync_bytes=1)
    assert not (out / INDEX).exists()
    assert not list(out.glob("*.safetensors"))
    with pytest.raises(FileFormatError):
        open_checkpoint(out)
    journal = out / PARTIAL / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"table": "half an ent')  # the machine stopped while it wrote
    blocks["allowed"] = 1_000
    applied = write_tables(*streamed, case.plan, out, rows_per_block=7, sync_bytes=1)
    assert applied.resumed
    assert blocks["encoded"] == total
    assert not (out / PARTIAL).exists()
    again = write_tables(*streamed, case.plan, tmp_path / "at once", rows_per_block=7)
    assert not again.resumed
    first, second = tensors_of(out), tensors_of(tmp_path / "at once")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [table.kept for table in applied.tables] == pytest.approx([table.kept for table in again.tables])


def test_what_another_checkpoint_left_unfinished_is_not_gone_on_with(
    case: Case, streamed: tuple[StreamedPlan, Checkpoint], tmp_path: Path, blocks: dict[str, int]
) -> None:
    out = tmp_path / "out"
    blocks["allowed"] = 5
    with pytest.raises(RunEndedError):
        write_tables(*streamed, case.plan, out, rows_per_block=7)
    fresh = {name: tensor + 1 for name, tensor in case.state.items()}
    blocks["allowed"] = 1_000
    applied = write_tables(*case.streamed(single(fresh, tmp_path)), case.plan, out, rows_per_block=7)
    assert not applied.resumed
    assert torch.equal(tensors_of(out)["kept.weight"], fresh["kept.weight"])


def test_a_folder_is_replaced_only_if_asked_and_by_one_process_at_a_time(
    case: Case, streamed: tuple[StreamedPlan, Checkpoint], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_tables(*streamed, case.plan, out)
    before = {path.name for path in out.iterdir()}
    with pytest.raises(OutputExistsError, match="holds tables already"):
        apply_to_files(every_table, checkpoint, case.plan, out, large_bytes=LARGE)
    with locked(out), pytest.raises(UserError, match="another process is writing"):
        write_tables(*streamed, case.plan, out)
    for _ in range(2):
        write_tables(*streamed, case.plan, out)
    left = {path.name for path in out.iterdir()}
    assert len(left) == 2 * len(before) - 2  # the state before stays for its readers, lock and index are one
    assert not (before - {INDEX, ".afm_fx.lock"}) & left


def test_another_models_plan_or_checkpoint_is_refused(cases: dict[str, Case], checkpoint: Path, tmp_path: Path) -> None:
    other = cases["joint tables and dropped units"]
    with pytest.raises(PlanError):
        apply_to_files(every_table, checkpoint, other.plan, tmp_path / "out", large_bytes=LARGE)
    with pytest.raises(ModelError, match="of another model: missing"):
        apply_to_files(other.factory, checkpoint, other.plan, tmp_path / "out", large_bytes=LARGE)
    assert not (tmp_path / "out").exists()


class Tied(nn.Module):
    """A table that also makes what a Linear multiplies by, outside its lookups."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.other, self.first = nn.Embedding(40, 6), nn.Embedding(40, 6), nn.Linear(6, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.other(ids) @ (self.table.weight * 2.0).T + self.table(ids).sum(1, keepdim=True)


def test_a_rewrite_that_needs_the_numbers_of_a_large_table_is_an_error_and_never_a_wrong_number(
    tmp_path: Path,
) -> None:
    module = Tied().eval()
    save_file(module.state_dict(), tmp_path / "tied.safetensors")
    program = afm_fx.capture(module, (ids_of(4),))
    statistics = afm_fx.calibrate(program, [ids_of(300)])
    plan = afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=2, linear=None), basis="afm")
    with pytest.raises(PlanError, match="computed from a large table's numbers outside its lookups"):
        apply_to_files(lambda: (Tied(), (ids_of(4),)), tmp_path / "tied.safetensors", plan, tmp_path / "out",
                       large_bytes=LARGE)  # fmt: skip


def test_an_exported_file_refers_to_the_tables_files_and_computes_the_same(
    applied: afm_fx.AppliedFiles,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    before = {path.name: path.stat().st_mtime_ns for path in applied.folder.glob("*.safetensors")}
    report = afm_fx.export_onnx_over_files(applied)
    assert {path.name: path.stat().st_mtime_ns for path in applied.folder.glob("*.safetensors")} == before
    assert not list(applied.folder.glob("*.data"))
    graph = onnx.load(report.path, load_external_data=False).graph
    outside = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}["location"]
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    index = json.loads((applied.folder / INDEX).read_text())["weight_map"]
    assert {table.name for table in applied.tables} <= set(outside)
    assert all(index[name] == file for name, file in outside.items())
    assert afm_fx.check_onnx(report.path).passed
    ids = ids_of(50, seed=4)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), applied.program.run((ids,)), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="beside the tables"):
        afm_fx.export_onnx_over_files(applied, "../elsewhere.onnx")
    with pytest.raises(OutputExistsError):
        afm_fx.export_onnx_over_files(applied)


def test_tables_of_the_program_are_the_files_mapped(applied: afm_fx.AppliedFiles) -> None:
    state = applied.program.graph_module.state_dict()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of mapped files on this system")
    mapped = maps.read_text()
    for table in applied.tables:
        assert storage_of(state[table.name])
        assert f"{table.name}-" in mapped
