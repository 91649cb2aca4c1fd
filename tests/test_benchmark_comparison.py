"""Two results side by side: what moved, what only the machine moved, and what does not compare."""

from __future__ import annotations

import dataclasses

import pytest

from afm_fx.benchmark_comparison import compare_benchmarks
from afm_fx.benchmark_result import BenchmarkResult, Settings, Timing
from afm_fx.errors import BenchmarkError
from afm_fx.latencies import Latencies
from afm_fx.machine import Machine

MACHINE = Machine("Some CPU", 2, "Linux x86_64", "3.11.0", (("torch", "2.11.0"), ("onnxruntime", "1.32.0")))


def timing(contender: str, p50: float, ratio: float, *, batch_size: int = 1, spread: float = 0.02) -> Timing:
    return Timing(
        contender, "ONNX Runtime", "cpu", batch_size, 10, Latencies(500, p50, 2 * p50, 3 * p50, None), None, 1e6 / p50,
        (p50 * (1 - spread), p50 * (1 + spread)), ratio, (ratio * (1 - spread), ratio * (1 + spread)),
    )  # fmt: skip


def result(*timings: Timing, machine: Machine = MACHINE, threads: int = 1) -> BenchmarkResult:
    return BenchmarkResult(machine, Settings((1,), threads, 1.0, 30, 10_000, 10, 10, 0), timings)


OLD = result(timing("dense", 100.0, 1.0), timing("low", 50.0, 0.5))


def test_a_slower_machine_moves_p50_and_leaves_the_ratio() -> None:
    found = compare_benchmarks(OLD, result(timing("dense", 150.0, 1.0), timing("low", 75.0, 0.5)))
    low = found.changes[1]
    assert (low.contender, low.p50, low.ratio) == ("low", 1.5, 1.0)
    assert low.p50_changed
    assert not low.ratio_changed
    assert found.warnings == ()


def test_a_change_within_the_scatter_of_the_rounds_is_not_named() -> None:
    new = result(timing("dense", 100.0, 1.0), timing("low", 51.0, 0.51))
    assert not compare_benchmarks(OLD, new).changes[1].ratio_changed
    assert "slower" not in compare_benchmarks(OLD, new).table()


def test_a_regression_of_one_contender_is_named() -> None:
    found = compare_benchmarks(OLD, result(timing("dense", 100.0, 1.0), timing("low", 80.0, 0.8)))
    assert found.changes[1].ratio == pytest.approx(1.6)
    (line,) = [line for line in found.table().splitlines() if " low " in line]
    assert line.split()[5] == "slower"
    assert line.split()[-1] == "slower"
    assert (
        "faster" in compare_benchmarks(result(timing("dense", 200.0, 1.0)), result(timing("dense", 100.0, 1.0))).table()
    )


def test_another_machine_other_versions_and_other_threads_are_warned_of() -> None:
    machine = dataclasses.replace(MACHINE, cpu="Other CPU", packages=(("torch", "2.13.0"), ("onnxruntime", "1.32.0")))
    warnings = compare_benchmarks(OLD, result(*OLD.timings, machine=machine, threads=2)).warnings
    assert any("another machine" in each and "Other CPU" in each for each in warnings)
    assert "other versions: torch 2.11.0 -> 2.13.0" in warnings
    assert "1 threads before, 2 now" in warnings


def test_what_only_one_result_has_is_listed() -> None:
    new = result(timing("dense", 100.0, 1.0), timing("int8", 40.0, 0.4, batch_size=8))
    found = compare_benchmarks(OLD, new)
    assert (found.only_old, found.only_new) == ((("low", 1),), (("int8", 8),))
    assert "only before: low at batch 1" in found.table()


def test_results_without_anything_in_common_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="no contender and batch size in common"):
        compare_benchmarks(OLD, result(timing("dense", 100.0, 1.0, batch_size=64)))
    with pytest.raises(BenchmarkError, match="ratios were to 'dense' and are to 'low'"):
        compare_benchmarks(OLD, result(timing("low", 100.0, 1.0), timing("dense", 100.0, 1.0)))
