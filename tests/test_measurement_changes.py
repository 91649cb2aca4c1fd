"""Two results side by side: what moved, what only the machine moved, and what does not compare."""

from __future__ import annotations

import dataclasses
import re

import pytest

from afm_fx.errors import BenchmarkError
from afm_fx.latencies import Latencies
from afm_fx.machine import Machine
from afm_fx.measurement import Measurement, Timing
from afm_fx.measurement_changes import compare_measurements

MACHINE = Machine("Some CPU", 2, "Linux x86_64", "3.11.0", (("torch", "2.11.0"), ("onnxruntime", "1.32.0")))


def timing(contender: str, p50: float, ratio: float, *, batch_size: int = 1, spread: float = 0.02) -> Timing:
    return Timing(
        contender, "ONNX Runtime", batch_size, False, Latencies(500, p50, 2 * p50, 3 * p50, None), 1e6 / p50,
        (p50 * (1 - spread), p50 * (1 + spread)), ratio, (ratio * (1 - spread), ratio * (1 + spread)),
    )  # fmt: skip


def result(*timings: Timing, machine: Machine = MACHINE, threads: int = 1) -> Measurement:
    return Measurement(machine, (1,), threads, 1.0, 10, 0, timings)


def line_of(contender: str, table: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if f" {contender} " in line]
    return line.split()


OLD = result(timing("dense", 100.0, 1.0), timing("low", 50.0, 0.5))


def test_a_slower_machine_moves_p50_and_leaves_the_ratio() -> None:
    table = compare_measurements(OLD, result(timing("dense", 150.0, 1.0), timing("low", 75.0, 0.5)))
    assert line_of("low", table) == ["1", "low", "50.0", "75.0", "1.500", "slower", "0.500", "0.500", "1.000"]
    assert "warning" not in table


def test_a_change_within_the_scatter_of_the_rounds_is_not_named() -> None:
    table = compare_measurements(OLD, result(timing("dense", 100.0, 1.0), timing("low", 51.0, 0.51)))
    assert line_of("low", table)[2:] == ["50.0", "51.0", "1.020", "0.500", "0.510", "1.020"]


def test_a_change_of_one_contender_is_named() -> None:
    new = result(timing("dense", 100.0, 1.0), timing("low", 80.0, 0.8))
    slower, faster = (line_of("low", compare_measurements(*pair)) for pair in ((OLD, new), (new, OLD)))
    assert slower[4:6] == ["1.600", "slower"]
    assert slower[-2:] == ["1.600", "slower"]
    assert faster[4:6] == ["0.625", "faster"]


def test_another_machine_other_versions_threads_and_runtimes_are_warned_of() -> None:
    machine = dataclasses.replace(MACHINE, cpu="Other CPU", packages=(("torch", "2.13.0"), ("onnxruntime", "1.32.0")))
    timings = (OLD.timings[0], dataclasses.replace(OLD.timings[1], runtime="torch"))
    table = compare_measurements(OLD, result(*timings, machine=machine, threads=2))
    assert "warning: another machine or other versions, so only the ratios compare" in table
    assert re.search("before Some CPU.*torch 2.11.0.*\n  now    Other CPU.*torch 2.13.0", table)
    assert "warning: 1 threads before, 2 now" in table
    assert "warning: 'low' ran in ONNX Runtime before, in torch now" in table


def test_what_only_one_result_has_is_listed() -> None:
    new = result(timing("dense", 100.0, 1.0), timing("int8", 40.0, 0.4, batch_size=8))
    table = compare_measurements(OLD, new)
    assert "only before: low at batch 1\n" in table
    assert "only now: int8 at batch 8\n" in table


def test_results_without_anything_in_common_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="no contender and batch size in common"):
        compare_measurements(OLD, result(timing("dense", 100.0, 1.0, batch_size=64)))
    with pytest.raises(BenchmarkError, match="ratios were to 'dense' and are to 'low'"):
        compare_measurements(OLD, result(timing("low", 100.0, 1.0), timing("dense", 100.0, 1.0)))
