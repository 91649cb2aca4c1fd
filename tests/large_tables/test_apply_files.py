"""A plan applied to files is the plan applied in memory, block by block; it is whole or absent, and can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
import torch.distributed.checkpoint as dcp
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import afm_fx
from afm_fx.commands.cli import app
from afm_fx.errors import FileFormatError, ModelError, OutputExistsError, PlanError, UserError
from afm_fx.io.checkpoints import UNFINISHED, open_checkpoint
from afm_fx.io.tensor_files import write_table
from afm_fx.large_tables import apply_files
from afm_fx.large_tables.absent_tables import storage_of, without_tables
from afm_fx.large_tables.apply_files import INDEX, apply_to_files
from afm_fx.large_tables.streamed_plan import StreamedPlan, TableSource, streamed_plan
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

    def streamed(self, checkpoint: Path) -> StreamedPlan:
        return streamed_plan(without_tables(self.factory, checkpoint, large_bytes=LARGE), self.plan)


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
def streamed(case: Case, checkpoint: Path) -> StreamedPlan:
    return case.streamed(checkpoint)


@pytest.fixture(scope="module")
def applied(case: Case, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> afm_fx.large_tables.AppliedFiles:
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


def index_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return found


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """What the safetensors library reads of a folder."""
    index = index_of(folder)
    files = {file: load_file(folder / file) for file in set(index.values())}
    assert sorted(name for each in files.values() for name in each) == sorted(index)
    return {name: files[file][name].clone() for name, file in index.items()}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables whose blocks of 7 rows are encoded, in order."""
    names: list[str] = []
    encode = TableSource.encode

    def note(self: TableSource, parts: list[Tensor]) -> Tensor:
        names.append(self.name)
        return encode(self, parts)

    monkeypatch.setattr(TableSource, "encode", note)
    monkeypatch.setattr(apply_files, "ROWS_PER_BLOCK", 7)
    return names


WRITTEN = [("every table", single), ("every table", sharded), ("every table", distributed),
           ("joint tables and dropped units", sharded)]  # fmt: skip


@pytest.mark.parametrize(("model", "write"), WRITTEN)
def test_the_files_are_the_state_dict_that_applying_the_plan_in_memory_gives(
    model: str, write: Callable[[dict[str, Tensor], Path], Path], cases: dict[str, Case], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    case = cases[model]
    path = write(case.state, tmp_path)
    applied = apply_to_files(case.factory, path, case.plan, tmp_path / "out", large_bytes=LARGE)
    found, wanted = tensors_of(tmp_path / "out"), case.expected.graph_module.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert len(applied.tables) >= 3
    assert torch.equal(applied.program.run((case.rows,)), case.expected.run((case.rows,)))
    assert applied.program.parameter_count() == case.expected.parameter_count()
    assert applied.bytes == sum(tensor.nbytes for tensor in wanted.values())
    monkeypatch.setattr(apply_files, "ROWS_PER_BLOCK", 7)
    apply_to_files(case.factory, path, case.plan, tmp_path / "blocks", large_bytes=LARGE)
    for name, tensor in tensors_of(tmp_path / "blocks").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-7)


def test_no_large_table_has_memory_while_the_model_is_built_and_captured(checkpoint: Path) -> None:
    absent = without_tables(every_table, checkpoint, large_bytes=LARGE)
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


class RunEndedError(BaseException):
    """What stands for a process that ends."""


STEPS = [(TableSource, "encode"), (Path, "replace"), (os, "fsync"), (Path, "write_bytes"), (Path, "unlink"),
         (shutil, "rmtree")]  # fmt: skip
"""Where a run reads, writes, renames and deletes."""


@contextlib.contextmanager
def ending_after(allowed: int) -> Iterator[list[int]]:
    """Ends the run at one of its steps; counts them."""
    steps = [0]

    def ending(step: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if steps[0] >= allowed:
                raise RunEndedError
            steps[0] += 1
            return step(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(apply_files, "ROWS_PER_BLOCK", 16)
        for owner, name in STEPS:
            patched.setattr(owner, name, ending(getattr(owner, name)))
        yield steps


def test_a_run_that_ends_anywhere_leaves_nothing_or_the_old_state_or_the_new_one(
    case: Case, checkpoint: Path, streamed: StreamedPlan, tmp_path: Path
) -> None:
    fresh = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in case.state.items()}
    newer = case.streamed(single(fresh, tmp_path))
    apply_files.write_state(streamed, case.plan, tmp_path / "old")
    apply_files.write_state(newer, case.plan, tmp_path / "new")
    old, new = tensors_of(tmp_path / "old"), tensors_of(tmp_path / "new")
    steps, ends = 0, set()
    while "finished" not in ends:
        empty, full = tmp_path / f"empty {steps}", tmp_path / f"full {steps}"
        shutil.copytree(tmp_path / "old", full)
        for folder in (empty, full):
            try:
                with ending_after(steps):
                    apply_files.write_state(newer, case.plan, folder)
                ends.add("finished")
            except RunEndedError:
                pass
            if folder == empty and not (folder / INDEX).exists():
                with pytest.raises(FileFormatError, match="no checkpoint"):
                    open_checkpoint(folder)
                ends.add("nothing")
                continue
            found = tensors_of(folder)
            is_new = torch.equal(found["kept.weight"], new["kept.weight"])
            assert all(torch.equal(found[name], (new if is_new else old)[name]) for name in new)
            ends.add("new" if is_new else "old")
            apply_files.write_state(newer, case.plan, folder)  # whatever was left behind is no hindrance
            again = tensors_of(folder)
            assert all(torch.equal(again[name], new[name]) for name in new)
            assert not (folder / UNFINISHED).exists()
        shutil.rmtree(empty, ignore_errors=True)
        shutil.rmtree(full)
        steps += 1
    assert steps > 20
    assert ends == {"nothing", "old", "new", "finished"}


def test_after_an_interruption_only_unfinished_tables_are_encoded(
    case: Case, streamed: StreamedPlan, tmp_path: Path, encoded: list[str]
) -> None:
    names = [source.name for source in streamed.tables]

    def stop(path: Path, name: str, *args: object) -> None:
        if name == names[2]:
            raise RunEndedError
        write_table(path, name, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(apply_files, "write_table", stop)
        with pytest.raises(RunEndedError):
            apply_files.write_state(streamed, case.plan, tmp_path / "out")
    assert set(encoded) == set(names[:2])
    encoded.clear()
    reports = apply_files.write_state(streamed, case.plan, tmp_path / "out")
    assert set(encoded) == set(names[2:])
    assert [report.encoded for report in reports] == [False, False, *[True] * len(names[2:])]


def test_a_new_checkpoint_encodes_the_tables_that_changed_and_leaves_the_files_of_the_others(
    case: Case, checkpoint: Path, tmp_path: Path, encoded: list[str]
) -> None:
    def apply(state: dict[str, Tensor], out: str, **options: object) -> afm_fx.large_tables.AppliedFiles:
        path = single(state, tmp_path)
        return apply_to_files(every_table, path, case.plan, tmp_path / out, large_bytes=LARGE, **options)  # type: ignore[arg-type]

    state = case.state
    apply(state, "out")
    before = index_of(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="holds tables already"):
        apply(state, "out")
    encoded.clear()
    assert not any(table.encoded for table in apply(state, "out", force=True).tables)
    assert encoded == []
    assert index_of(tmp_path / "out") == before

    state["encoded.weight"] = state["encoded.weight"].clone()
    state["encoded.weight"][20] += 1.0
    state["last.weight"] = state["last.weight"] * 2.0
    changed = apply(state, "out", force=True)
    assert set(encoded) == {"encoded.codes.weight"}
    assert [table.name for table in changed.tables if table.encoded] == ["encoded.codes.weight"]
    now = index_of(tmp_path / "out")
    assert {table.name for table in changed.tables if now[table.name] != before[table.name]} == {"encoded.codes.weight"}
    expected = apply(state, "from nothing")
    found, wanted = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "from nothing")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(changed.program.run((case.rows,)), expected.program.run((case.rows,)))
    assert "as it was" in changed.table()
    # The state before stays for its readers until the next change.
    files = set(before.values()) | set(now.values())
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == files
    apply(state, "out", force=True)
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == set(now.values())


@pytest.mark.parametrize("how", ["renamed over it", "written into it"])
@pytest.mark.parametrize("form", [single, sharded, distributed])
def test_a_checkpoint_replaced_while_it_is_read_by_one_of_equal_size_and_time_is_refused(
    form: Callable[[dict[str, Tensor], Path], Path],
    how: str,
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in case.state.items()}
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    checkpoint, _, newer = form(case.state, tmp_path / "a"), form(fresh, tmp_path / "b"), form(fresh, tmp_path / "c")
    first = case.streamed(newer).tables[0].name
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("*") if file.is_file()}
    encode = TableSource.encode
    done: list[str] = []

    def replacing(self: TableSource, parts: list[Tensor]) -> Tensor:
        if not done and self.name != first:
            done.append(self.name)
            for old, time in times.items():
                new = tmp_path / "b" / old.relative_to(tmp_path / "a")
                assert new.stat().st_size == old.stat().st_size
                if how == "renamed over it":
                    new.replace(old)
                else:
                    old.write_bytes(new.read_bytes())
                os.utime(old, ns=(time, time))
        return encode(self, parts)

    monkeypatch.setattr(TableSource, "encode", replacing)
    out = tmp_path / "out"
    with pytest.raises(FileFormatError, match="was replaced or written to while it was read"):
        apply_to_files(case.factory, checkpoint, case.plan, out, large_bytes=LARGE)
    assert done
    assert not (out / INDEX).exists()
    apply_to_files(case.factory, checkpoint, case.plan, out, large_bytes=LARGE)
    apply_to_files(case.factory, newer, case.plan, tmp_path / "expected", large_bytes=LARGE)
    found, expected = tensors_of(out), tensors_of(tmp_path / "expected")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_plan_with_another_factor_encodes_its_table_again(
    case: Case, checkpoint: Path, tmp_path: Path, encoded: list[str]
) -> None:
    apply_to_files(every_table, checkpoint, case.plan, tmp_path / "out", large_bytes=LARGE)
    encoded.clear()
    program = afm_fx.capture(*every_table())
    policy = afm_fx.Fixed(embedding=2, linear=None, overrides={"encoded": 3, "constant": 0, "kept": None})
    other = afm_fx.make_plan(program, afm_fx.calibrate(program, [ids_of(300, 30)]), policy, basis="weight_svd")
    apply_to_files(every_table, checkpoint, other, tmp_path / "out", force=True, large_bytes=LARGE)
    assert set(encoded) == {"encoded.codes.weight", "padded.codes.weight"}
    found, wanted = tensors_of(tmp_path / "out"), afm_fx.apply_plan(program, other).graph_module.state_dict()
    torch.testing.assert_close(found["encoded.codes.weight"], wanted["encoded.codes.weight"])


def grown() -> tuple[nn.Module, tuple[Tensor]]:
    """The factory with four rows more in a table."""
    model, example = every_table()
    added = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    table = torch.cat([model.get_parameter("encoded.weight").detach(), added])
    model.encoded = nn.Embedding.from_pretrained(table, freeze=False)
    return model.eval(), example


def test_a_table_may_have_rows_added_at_its_end(case: Case, tmp_path: Path) -> None:
    state = dict(grown()[0].state_dict())
    applied = apply_to_files(grown, single(state, tmp_path), case.plan, tmp_path / "out", large_bytes=LARGE)
    codes = case.plan.factors["encoded"].encode_table(state["encoded.weight"])
    assert codes.shape == (49, 2)
    assert torch.equal(tensors_of(tmp_path / "out")["encoded.codes.weight"], codes)
    assert applied.program.run((ids_of(5),)).shape == (5,)


def test_statistics_tell_drift_and_make_the_factors_again(case: Case, tmp_path: Path) -> None:
    statistics = afm_fx.calibrate(afm_fx.capture(*every_table()), [ids_of(400, seed) for seed in range(2)])
    state, factor = case.state, case.plan.factors["encoded"]
    left_out = torch.eye(6, dtype=torch.float64) - factor.decoder @ factor.decoder.mT
    noise = torch.randn(45, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    state["encoded.weight"] = (state["encoded.weight"].double() + 3.0 * noise @ left_out).float()
    path = single(state, tmp_path)
    applied = apply_to_files(every_table, path, case.plan, tmp_path / "out", statistics=statistics, large_bytes=LARGE)
    model = every_table()[0]
    model.load_state_dict(state)
    program = afm_fx.capture(model, (ids_of(4),))
    expected = afm_fx.refit_plan(program, case.plan, statistics)
    assert applied.refit is not None
    drift = {site.name: site for site in applied.refit.drift}
    assert drift["encoded"].kept_by_old < drift["encoded"].kept_then - 0.1
    assert expected.table() in applied.table()
    assert applied.plan.digest == expected.plan.digest
    wanted = afm_fx.apply_plan(program, expected.plan).graph_module.state_dict()
    found = tensors_of(tmp_path / "out")
    assert all(torch.equal(found[name], wanted[name]) for name in ("encoded.codes.weight", "kept.weight"))
    rows = [ids_of(100)]
    given = apply_to_files(
        every_table, path, case.plan, tmp_path / "given", statistics=statistics, rows=rows, large_bytes=LARGE
    )
    assert given.plan.digest == afm_fx.refit_plan(program, case.plan, statistics, rows).plan.digest
    with pytest.raises(UserError, match="needs the statistics"):
        apply_to_files(every_table, path, case.plan, tmp_path / "none", rows=rows)


def test_a_file_that_is_gone_or_damaged_is_made_again(
    case: Case, streamed: StreamedPlan, tmp_path: Path, encoded: list[str]
) -> None:
    apply_files.write_state(streamed, case.plan, tmp_path / "out")
    wanted = tensors_of(tmp_path / "out")
    (tmp_path / "out" / index_of(tmp_path / "out")["encoded.codes.weight"]).write_bytes(b"nothing")
    (tmp_path / "out" / index_of(tmp_path / "out")["kept.weight"]).unlink()
    encoded.clear()
    apply_files.write_state(streamed, case.plan, tmp_path / "out")
    assert set(encoded) == {"encoded.codes.weight", "kept.weight"}
    found = tensors_of(tmp_path / "out")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_somebody_elses_files_are_not_replaced(case: Case, streamed: StreamedPlan, tmp_path: Path) -> None:
    index = save_sharded(case.state, tmp_path / "theirs")
    before = index.read_bytes()
    with pytest.raises(FileFormatError, match="another program wrote it"):
        apply_files.write_state(streamed, case.plan, tmp_path / "theirs")
    assert index.read_bytes() == before
    (tmp_path / "out").mkdir()
    strangers = [tmp_path / "out" / name for name in ("model-1.safetensors", "notes.txt")]
    for path in strangers:
        path.touch()
    for _ in range(2):
        apply_files.write_state(streamed, case.plan, tmp_path / "out")
    assert all(path.exists() for path in strangers)


def test_one_process_writes_at_a_time(case: Case, streamed: StreamedPlan, tmp_path: Path) -> None:
    tmp_path.joinpath("out").mkdir()
    with FileLock(tmp_path / "out" / apply_files.LOCK), pytest.raises(UserError, match="another process is writing"):
        apply_files.write_state(streamed, case.plan, tmp_path / "out")


def test_another_models_plan_or_checkpoint_is_refused(cases: dict[str, Case], checkpoint: Path, tmp_path: Path) -> None:
    other = cases["joint tables and dropped units"]
    with pytest.raises(PlanError):
        apply_to_files(every_table, checkpoint, other.plan, tmp_path / "out", large_bytes=LARGE)
    with pytest.raises(ModelError, match="of another model: missing"):
        apply_to_files(other.factory, checkpoint, other.plan, tmp_path / "out", large_bytes=LARGE)
    assert not (tmp_path / "out").exists()


class Buffers(nn.Module):
    """Two tables with no gradient: one is a buffer, and one has two names."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(240.0).reshape(40, 6).cos())
        self.one = nn.Embedding(40, 6)
        self.other = nn.Embedding(40, 6)
        self.other.weight = self.one.weight
        self.last = nn.Linear(6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.table) + self.one(ids) * self.other(ids + 0)
        return self.last(rows).squeeze(1)


def test_a_table_that_is_a_buffer_or_has_two_names_is_streamed_too(tmp_path: Path) -> None:
    module = Buffers().eval()
    state = {name: tensor for name, tensor in module.state_dict().items() if name != "other.weight"}
    program = afm_fx.capture(module, (ids_of(4),))
    statistics = afm_fx.calibrate(program, [ids_of(300)])
    plan = afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=2, linear=None), basis="afm")
    expected = afm_fx.apply_plan(program, plan)
    applied = apply_to_files(
        lambda: (Buffers(), (ids_of(4),)), single(state, tmp_path), plan, tmp_path / "out", large_bytes=LARGE
    )
    assert len(applied.tables) == 2
    assert torch.equal(applied.program.run((ids_of(30),)), expected.run((ids_of(30),)))


class Tied(nn.Module):
    """A table that also makes what a Linear multiplies by, outside its lookups."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.other, self.first = nn.Embedding(40, 6), nn.Embedding(40, 6), nn.Linear(6, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.other(ids) @ (self.table.weight * 2.0).T + self.table(ids).sum(1, keepdim=True)


def test_a_large_table_whose_numbers_the_model_computes_with_stays_whole(tmp_path: Path) -> None:
    module = Tied().eval()
    save_file(module.state_dict(), tmp_path / "tied.safetensors")
    program = afm_fx.capture(module, (ids_of(4),))
    statistics = afm_fx.calibrate(program, [ids_of(300)])
    plan = afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=2, linear=None), basis="afm")
    made = apply_to_files(
        lambda: (Tied(), (ids_of(4),)), tmp_path / "tied.safetensors", plan, tmp_path / "out", large_bytes=LARGE
    )
    assert {table.name: table.width for table in made.tables} == {"other.codes.weight": 2, "table.weight": 6}
    assert torch.equal(made.program.graph_module.get_parameter("table.weight"), module.table.weight)
    torch.testing.assert_close(made.program.run(ids_of(9)), afm_fx.apply_plan(program, plan).run(ids_of(9)))


def test_an_exported_file_refers_to_the_tables_files_and_computes_the_same(
    applied: afm_fx.large_tables.AppliedFiles,
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
    index = index_of(applied.folder)
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


def test_tables_of_the_program_are_the_files_mapped(applied: afm_fx.large_tables.AppliedFiles) -> None:
    state = applied.program.graph_module.state_dict()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of mapped files on this system")
    mapped = maps.read_text()
    for table in applied.tables:
        assert storage_of(state[table.name])
        assert f"{table.name}-" in mapped


def test_the_command_applies_exports_and_tells_a_users_mistake_from_the_rest(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    save_file(case.state, "new.safetensors")
    case.plan.save("plan.safetensors")
    afm_fx.calibrate(afm_fx.capture(*every_table()), [ids_of(400)]).save("statistics.safetensors")
    command = ["apply", "tests.streamed_models:every_table", "--plan", "plan.safetensors", "--checkpoint",
               "new.safetensors", "--out", "tables", "--large-bytes", str(LARGE)]  # fmt: skip
    done = CliRunner().invoke(app, [*command, "--onnx"])
    assert done.exit_code == 0, done.output
    assert "encoded" in done.output
    assert {"low_rank.onnx", INDEX} <= {path.name for path in (tmp_path / "tables").iterdir()}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "holds tables already" in again.output
    refit = CliRunner().invoke(
        app, [*command, "--force", "--statistics", "statistics.safetensors", "--plan-out", "fresh.safetensors"]
    )
    assert refit.exit_code == 0, refit.output
    assert "energy kept then" in refit.output
    assert [site.name for site in afm_fx.Plan.load("fresh.safetensors").sites] == [
        site.name for site in case.plan.sites
    ]
    command[command.index("new.safetensors")] = "none.safetensors"
    wrong = CliRunner().invoke(app, [*command, "--force"])
    assert wrong.exit_code == 2
    assert "there is no checkpoint" in wrong.output
