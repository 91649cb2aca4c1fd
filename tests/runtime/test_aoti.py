from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import BatchError, ExportError, FileFormatError, MissingPackageError, OutputExistsError, UserError
from afm_fx.runtime import aoti

pytestmark = pytest.mark.xdist_group("aoti")  # one process compiles the package, for all tests

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="AOTInductor needs a C++ compiler"
)


class Two(nn.Module):
    """A dict of features in, a dict of outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4)
        self.bag = nn.EmbeddingBag(40, 4, mode="sum")
        self.linear = nn.Linear(8, 3)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        row = torch.cat([self.table(features["user id"]), self.bag(features["history"])], 1)
        score = self.linear(row).relu() * features["weight"].unsqueeze(1)
        return {"score": score, "total": score.sum(1)}


def features(rows: int) -> dict[str, Tensor]:
    return {
        "user id": torch.randint(0, 40, (rows,)),
        "history": torch.randint(0, 40, (rows, 5)),
        "weight": torch.rand(rows),
    }


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    torch.manual_seed(2)
    return afm_fx.capture(Two().eval(), (features(3),))


@pytest.fixture(scope="module")
def exported(program: afm_fx.Program, tmp_path_factory: pytest.TempPathFactory) -> afm_fx.runtime.AotiReport:
    return afm_fx.export_aoti(program, tmp_path_factory.mktemp("package") / "deep" / "two.pt2")


@needs_compiler
def test_the_package_computes_what_the_program_computes_at_any_batch_size(
    program: afm_fx.Program, exported: afm_fx.runtime.AotiReport
):
    assert exported.max_abs_difference < 1e-5
    assert exported.bytes == exported.path.stat().st_size > 4 * exported.parameters
    assert [file.name for file in exported.path.parent.iterdir()] == ["two.pt2"]
    model = afm_fx.load_aoti(exported.path)
    for rows in (1, 2, 33):
        batch = features(rows)
        torch.testing.assert_close(model.run(batch), program.run((batch,)))


@needs_compiler
def test_inputs_are_bound_by_name_and_checked_before_the_code_runs(exported: afm_fx.runtime.AotiReport):
    model = afm_fx.load_aoti(exported.path)
    assert [each.name for each in model.note.inputs] == ["user id", "history", "weight"]
    assert model.note.threads == 1
    batch = features(6)
    reordered = dict(reversed(batch.items()))
    torch.testing.assert_close(model.run(reordered), model.run((batch,)), rtol=0, atol=0)
    with pytest.raises(BatchError, match=r"'two.pt2' takes input 'history' as int64 \[batch, 5\].*int64 \[6, 4\]"):
        model.run({**batch, "history": batch["history"][:, :4]})
    with pytest.raises(BatchError, match=r"takes input 'weight' as float32 \[batch\].*float64"):
        model.run({**batch, "weight": batch["weight"].double()})
    with pytest.raises(BatchError, match="takes 3 inputs"):
        model.run({"user id": batch["user id"]})
    with pytest.raises(BatchError, match="disagree on it"):
        model.run({**batch, "weight": batch["weight"][:2]})


@needs_compiler
def test_torch_alone_loads_the_package(program: afm_fx.Program, exported: afm_fx.runtime.AotiReport):
    batch = features(4)
    model = torch._inductor.aoti_load_package(str(exported.path))
    torch.testing.assert_close(model(batch), program.run((batch,)))


@needs_compiler
def test_a_packed_low_rank_program_with_int8_tables_compiles(tmp_path: Path):
    from tests.runtime.test_reduced_precision import Clicks, clicks

    dense = afm_fx.capture(Clicks().eval(), clicks(4))
    low_rank = afm_fx.compress(dense, [clicks(300)], afm_fx.Fixed(embedding=6, linear=None)).program
    reduced = afm_fx.reduce_precision(low_rank, "int8", smallest_bytes=0).program
    report = afm_fx.export_aoti(reduced, tmp_path / "reduced.pt2", threads=2)
    assert report.max_abs_difference < 1e-5
    assert afm_fx.load_aoti(report.path).note.threads == 2
    assert "threads of its loops" in report.table()


@needs_compiler
def test_a_package_that_differs_is_refused_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    program, other = (afm_fx.capture(Line(), torch.randn(4, 3)) for _ in range(2))
    compile_ = aoti._compile
    monkeypatch.setattr(aoti, "_compile", lambda _, *rest: compile_(other, *rest))
    with pytest.raises(ExportError, match="differs from torch by"):
        afm_fx.export_aoti(program, tmp_path / "line.pt2")
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_the_message_says_what_to_install(
    program: afm_fx.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> Any:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(MissingPackageError, match=r"found none: install g\+\+"):
        afm_fx.export_aoti(program, tmp_path / "two.pt2")
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_compiles_at_a_time(program: afm_fx.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    probe = "import filelock, sys; filelock.FileLock(sys.argv[1]).acquire(timeout=0)"

    def compile_(*_: Any, **__: Any) -> None:
        second = subprocess.run(  # noqa: S603 - the probe above
            [sys.executable, "-c", probe, str(tmp_path / "cache" / "afm_fx.lock")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        raise RuntimeError("held" if "filelock._error.Timeout" in second.stderr else f"free: {second.stderr}")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_)
    monkeypatch.setattr(aoti, "_find_compiler", lambda: None)
    with pytest.raises(ExportError, match="cannot compile this program: RuntimeError: held"):
        afm_fx.export_aoti(program, tmp_path / "two.pt2")


def test_mistakes_are_named(program: afm_fx.Program, tmp_path: Path):
    with pytest.raises(UserError, match=r"called \*.pt2, got 'two.onnx'"):
        afm_fx.export_aoti(program, tmp_path / "two.onnx")
    with pytest.raises(UserError, match="at least 1, got 0"):
        afm_fx.export_aoti(program, tmp_path / "two.pt2", threads=0)
    (tmp_path / "old.pt2").write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        afm_fx.export_aoti(program, tmp_path / "old.pt2")
    with pytest.raises(FileFormatError, match="damaged or not an AOTInductor package"):
        afm_fx.load_aoti(tmp_path / "old.pt2")
    with pytest.raises(FileFormatError, match="there is no file"):
        afm_fx.load_aoti(tmp_path / "missing.pt2")


def test_importing_the_package_does_not_load_the_compiler():
    code = "import sys, afm_fx; sys.exit('torch._inductor.codegen.cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603 - our own words


@pytest.mark.parametrize(("name", "bad"), [("user id", -1), ("user id", 40), ("history", -1), ("history", 40)])
@needs_compiler
def test_the_package_itself_refuses_an_id_outside_its_table(name: str, bad: int, exported: afm_fx.runtime.AotiReport):
    batch = features(2000)
    batch[name].view(-1)[-1] = bad
    table = "table" if name == "user id" else "bag"
    said = rf"an id is outside table '{table}' \(ids 0 to 39\)"
    with pytest.raises(RuntimeError, match=said):
        torch._inductor.aoti_load_package(str(exported.path))(batch)
    with pytest.raises(BatchError, match=rf"^'two.pt2' refuses the batch: {said}$"):
        afm_fx.load_aoti(exported.path).run(batch)


@needs_compiler
def test_a_packed_package_refuses_an_id_of_another_table_on_several_threads_and_goes_on(tmp_path: Path):
    from tests.passes.serving.test_pack_tables import SIZES, Wide, wide_inputs

    program = afm_fx.pack(afm_fx.capture(Wide().double().eval(), wide_inputs(3))).program
    assert len({bound.column for bound in program.id_bounds}) == len(SIZES)
    afm_fx.export_aoti(program, tmp_path / "wide.pt2", threads=2)
    model = torch._inductor.aoti_load_package(str(tmp_path / "wide.pt2"))
    for column, rows in enumerate(SIZES):
        for bad in (-1, rows):
            (wrong,) = wide_inputs(2000)
            wrong[-1, column] = bad
            with pytest.raises(RuntimeError, match="an id in input 'x' is outside the table of its column"):
                model(wrong)
    batch = wide_inputs(2000)
    torch.testing.assert_close(model(*batch), program.run(batch), rtol=1e-12, atol=1e-12)
