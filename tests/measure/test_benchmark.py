from __future__ import annotations

import functools
import gc
import importlib
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from afm_fx.errors import BatchError, BenchmarkError
from afm_fx.measure.benchmark import benchmark
from afm_fx.measure.contenders import Competitor, Compiled, OnnxFile, make_contender
from afm_fx.program.capture import capture
from afm_fx.program.program import Program
from afm_fx.runtime.aoti import export_aoti
from afm_fx.runtime.onnx_export import export_onnx

benchmark_module = importlib.import_module("afm_fx.measure.benchmark")  # the package's attribute is the function
QUICK: dict[str, Any] = {"seconds": 0.01, "rounds": 2}


@pytest.fixture(autouse=True)
def few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WARMUP": 2, "FEWEST_CALLS": 4, "MOST_CALLS": 6}.items():
        monkeypatch.setattr(benchmark_module, name, value)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(9, 2)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.users(features["user id"]).sum(1) + features["age"]


class Recorder:
    """A callable that notes what it was called with."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        self.name = name
        self.log = log if log is not None else []
        self.seen: list[Tensor] = []
        self.collecting: list[bool] = []
        self.threads: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.log.append(self.name)
        self.seen.append(x)
        self.collecting.append(gc.isenabled())
        self.threads.append(torch.get_num_threads())
        return x


@pytest.fixture
def program() -> Program:
    return capture(Linear(), torch.randn(4, 3))


@pytest.fixture
def path(program: Program, tmp_path: Path) -> Path:
    return export_onnx(program, tmp_path / "linear.onnx", check=False).path


def test_a_file_and_a_program_are_timed_at_every_batch_size(program: Program, path: Path) -> None:
    result = benchmark({"file": path, "torch": program}, torch.randn(4, 3), batch_sizes=(1, 3, 8), **QUICK)
    assert result.contenders == ("file", "torch")
    assert [(timing.batch_size, timing.contender) for timing in result.timings] == [
        (size, name) for size in (1, 3, 8) for name in ("file", "torch")
    ]
    for timing in result.timings:
        assert timing.p50_us > 0
        assert 4 <= timing.latencies.calls <= 6
        assert timing.latencies.p90_us is None  # so few calls carry a median at best
        assert timing.rows_per_second > 0
        first = result.timing("file", timing.batch_size)
        assert timing.ratio == pytest.approx(timing.p50_us / first.p50_us)
        assert timing.ratio_range[0] <= timing.ratio_range[1]
    assert {timing.runtime for timing in result.timings} == {"ONNX Runtime", "torch"}


def test_rows_are_cut_or_repeated_to_the_batch_size() -> None:
    recorder = Recorder()
    x = torch.arange(5.0).unsqueeze(1)
    benchmark({"recorder": recorder}, x, batch_sizes=(2, 7), **QUICK)
    shown = {tuple(batch.flatten().tolist()) for batch in recorder.seen}
    assert shown == {(0, 1), (2, 3), (0, 1, 2, 3, 4, 0, 1)}


def test_contenders_take_turns_in_an_order_that_changes_and_repeats_from_run_to_run() -> None:
    def order() -> list[str]:
        log: list[str] = []
        contenders = {name: Recorder(name, log) for name in "abcd"}
        benchmark(contenders, torch.randn(4, 3), batch_sizes=(4,), seconds=0.01, rounds=6)
        played = log[4 * 2 :: 2]  # after the warm-up; every turn is one untimed and one timed call
        assert all(sorted(played[at : at + 4]) == list("abcd") for at in range(0, len(played), 4))
        return played

    first = order()
    assert first == order()
    assert len({tuple(first[at : at + 4]) for at in range(0, 24, 4)}) > 1


def test_the_collector_is_off_while_timing_and_on_again_after() -> None:
    recorder = Recorder()
    benchmark({"recorder": recorder}, torch.randn(4, 3), batch_sizes=(2,), **QUICK)
    assert not any(recorder.collecting[2:])
    assert gc.isenabled()


def test_torch_threads_are_pinned_and_restored() -> None:
    before = torch.get_num_threads()
    recorder = Recorder()
    result = benchmark({"recorder": recorder}, torch.randn(4, 3), batch_sizes=(2,), threads=before + 2, **QUICK)
    assert set(recorder.threads) == {before + 2}
    assert torch.get_num_threads() == before
    assert result.threads == before + 2


def test_threads_are_restored_after_a_failure() -> None:
    def fails(_: Tensor) -> Tensor:
        raise ValueError("no such luck")

    before = torch.get_num_threads()
    with pytest.raises(BenchmarkError, match=r"'unlucky' fails: ValueError: no such luck"):
        benchmark({"unlucky": fails}, torch.randn(4, 3), batch_sizes=(2,), threads=before + 1, **QUICK)
    assert torch.get_num_threads() == before


def test_none_means_all_cores() -> None:
    result = benchmark({"recorder": Recorder()}, torch.randn(4, 3), batch_sizes=(2,), threads=None, **QUICK)
    assert result.threads == result.machine.cores


def test_dict_inputs_reach_files_by_name_and_programs_as_they_are(tmp_path: Path) -> None:
    model = Features()
    example = {"user id": torch.tensor([1, 8, 2]), "age": torch.rand(3)}
    program = capture(model, example)
    path = export_onnx(program, tmp_path / "features.onnx", check=False).path
    reordered = {"age": example["age"], "user id": example["user id"]}
    for batch in (example, reordered):
        result = benchmark({"file": path, "module": model}, batch, batch_sizes=(2,), **QUICK)
        assert len(result.timings) == 2
    assert len(benchmark({"program": program, "file": path}, example, batch_sizes=(2,), **QUICK).timings) == 2


def test_a_program_tells_which_inputs_carry_the_batch() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale

    program = capture(Scaled(), {"x": torch.randn(4, 3), "scale": torch.rand(3)})
    inputs = {"scale": torch.rand(3), "x": torch.randn(5, 3)}  # the first tensor's axis 0 is not the batch
    result = benchmark({"program": program}, inputs, batch_sizes=(2, 9), **QUICK)
    assert [timing.batch_size for timing in result.timings] == [2, 9]


def test_a_contender_that_takes_other_inputs_is_named_before_anything_runs(program: Program, path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(BatchError, match=r"contender 'file' takes input 'x' as float32.*\[4, 5\]"):
        benchmark({"recorder": recorder, "file": path}, torch.randn(4, 5), batch_sizes=(4,), **QUICK)
    with pytest.raises(BatchError, match=r"contender 'program' does not take this batch"):
        benchmark({"recorder": recorder, "program": program}, torch.randn(4, 5), batch_sizes=(4,), **QUICK)
    with pytest.raises(BatchError, match=r"takes 1 inputs \(x\), the batch holds 2"):
        benchmark({"file": path}, (torch.randn(4, 3), torch.randn(4)), batch_sizes=(4,), **QUICK)
    with pytest.raises(BatchError, match="holds int64"):
        benchmark({"file": path}, torch.ones(4, 3, dtype=torch.int64), batch_sizes=(4,), **QUICK)
    assert recorder.seen == []


def test_a_file_with_a_fixed_batch_refuses_another(tmp_path: Path) -> None:
    program = capture(Linear(), torch.randn(4, 3), dynamic_batch=False)
    path = export_onnx(program, tmp_path / "fixed.onnx", check=False).path
    with pytest.raises(BatchError, match=r"'fixed' takes input 'x' as float32 \[4, 3\]"):
        benchmark({"fixed": path}, torch.randn(4, 3), batch_sizes=(2,), **QUICK)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="contender 'dense': there is no ONNX file"):
        benchmark({"dense": tmp_path / "missing.onnx"}, torch.randn(4, 3), **QUICK)
    (tmp_path / "damaged.onnx").write_bytes(b"not a model")
    with pytest.raises(BenchmarkError, match=r"contender 'dense': .*damaged or not an ONNX file"):
        benchmark({"dense": tmp_path / "damaged.onnx"}, torch.randn(4, 3), **QUICK)
    with pytest.raises(BenchmarkError, match="is a int"):
        benchmark({"dense": 7}, torch.randn(4, 3), **QUICK)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": (0,)}, "batch sizes"),
        ({"batch_sizes": ()}, "batch sizes"),
        ({"batch_sizes": (2, 2)}, "given once"),
        ({"threads": 0}, "threads"),
        ({"seconds": 0.0}, "seconds"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        benchmark({"recorder": Recorder()}, torch.randn(4, 3), **settings)


def test_no_contenders_and_no_rows_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="no contenders"):
        benchmark({}, torch.randn(4, 3))
    with pytest.raises(BatchError, match="no rows"):
        benchmark({"recorder": Recorder()}, torch.randn(0, 3))
    with pytest.raises(BatchError, match="no tensor"):
        benchmark({"recorder": Recorder()}, {"x": 1})


def test_compiled_programs_and_packages_are_timed_beside_files(program: Program, path: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile and AOTInductor need a C++ compiler")
    package = export_aoti(program, tmp_path / "linear.pt2").path
    contenders: dict[str, Competitor] = {"file": path, "package": package, "compiled": Compiled(program)}
    x = torch.randn(9, 3)
    result = benchmark(contenders, x, batch_sizes=(1, 6), **QUICK)
    assert {timing.contender: timing.runtime for timing in result.timings} == {
        "file": "ONNX Runtime", "package": "AOTInductor", "compiled": "torch.compile"
    }  # fmt: skip
    expected = program.run(x)
    for name, competitor in contenders.items():
        output = make_contender(name, competitor, 1).prepare(x)()
        output = output[0] if isinstance(output, (list, tuple)) else output
        torch.testing.assert_close(torch.as_tensor(output), expected)
    with pytest.raises(BatchError, match=r"contender 'package' takes input 'x' as float32 \[batch, 3\]"):
        benchmark({"package": package}, torch.randn(4, 5), batch_sizes=(4,), **QUICK)
    with pytest.raises(BatchError, match="contender 'compiled' does not take this batch"):
        benchmark({"compiled": Compiled(program)}, torch.randn(4, 5), batch_sizes=(4,), **QUICK)


def test_a_compiled_program_is_compiled_once_for_all_batch_sizes_but_one(program: Program) -> None:
    compiled, graphs = Compiled(program), list[int]()

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend=backend)):
        function = compiled.function
    with torch.inference_mode():
        for rows in (5, 2, 64, 300):
            function(torch.randn(rows, 3))
    assert len(graphs) == 1


def test_a_provider_that_is_not_there_is_an_error_and_no_fallback(path: Path) -> None:
    from tests.fake_cuda_runtime import FakeRuntime  # needs ONNX Runtime

    with pytest.raises(BenchmarkError, match=r"'a': there is no provider 'quantum'; there are cpu, cuda"):
        benchmark({"a": OnnxFile(path, "quantum")}, torch.randn(4, 3), **QUICK)
    with (
        mock.patch("afm_fx.runtime.onnx_runtime.import_runtime", return_value=FakeRuntime(starts=False)),
        pytest.raises(BenchmarkError, match="could not be started"),
    ):
        make_contender("a", OnnxFile(path, "cuda"), 1)


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "damaged.pt2").write_bytes(b"not a package")
    with pytest.raises(BenchmarkError, match=r"contender 'aoti': .*damaged or not an AOTInductor package"):
        benchmark({"aoti": tmp_path / "damaged.pt2"}, torch.randn(4, 3), **QUICK)
