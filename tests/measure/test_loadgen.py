"""One test of MLPerf LoadGen: its log is read as it stands, a broken one is refused, a failing call ends the test."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from afm_fx.errors import BenchmarkError, FileFormatError
from afm_fx.measure.contenders import make_contender
from afm_fx.measure.loadgen import DETAIL, WARMUP_CALLS, LoadTest, read_log, read_run, run_load_test

TEST = LoadTest(latency_bound_ms=100.0, qps=2000.0, seconds=0.1, min_queries=50, threads=1)
SERVER = make_contender("server", lambda _: None, 1)
RESULTS = {
    "result_query_count": 400, "result_completed_samples_per_sec": 99.5,
    **{f"result_{percentile:.2f}_percentile_latency_ns": 25 * percentile for percentile in (50, 90, 99, 99.9)},
}  # fmt: skip


def line(key: str, value: Any, *, error: bool = False) -> str:
    return f":::MLLOG {json.dumps({'key': key, 'value': value, 'metadata': {'is_error': error}})}"


def written(directory: Path, *lines: str) -> Path:
    (directory / DETAIL).write_text("\n".join(lines) + "\n")
    return directory


def results(**more: Any) -> list[str]:
    return [line(key, value) for key, value in {**RESULTS, **more}.items()]


def test_a_run_is_in_the_logs_numbers_and_lines_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    lines = "garbage", ":::MLLOG {broken", *results(result_validity="VALID")
    run = read_run(SERVER, TEST, written(tmp_path, *lines), answered=399)
    assert run.invalid == ""
    assert (run.queries, run.answered, run.lost) == (400, 399, 1)
    assert (run.qps, run.target_qps) == (99.5, 2000.0)
    assert run.latencies.cells() == ("1.2", "2.2", "2.5", "-")  # 99.9 needs 2,995 requests


def test_a_log_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="has no 'result_query_count'; another version"):
        read_run(SERVER, TEST, written(tmp_path, line("result_validity", "VALID")), answered=0)


def test_an_error_that_loadgen_notes_makes_a_run_invalid_and_is_the_reason(tmp_path: Path) -> None:
    lines = *results(result_validity="VALID"), line("error_runtime", "too many", error=True)
    run = read_run(SERVER, TEST, written(tmp_path, *lines), answered=400)
    assert run.invalid == "too many"


def test_too_few_queries_for_confidence_are_the_reason(tmp_path: Path) -> None:
    told = " * Only processed 5 queries.  * Need to process at least 64 queries"
    lines = results(
        result_validity="INVALID", result_invalid_reason="", early_stopping_met=False, early_stopping_result=told
    )
    run = read_run(SERVER, TEST, written(tmp_path, *lines), answered=400)
    assert run.invalid == "Only processed 5 queries. Need to process at least 64 queries"
    lines = results(result_validity="INVALID", early_stopping_met=True, early_stopping_result=told)
    run = read_run(SERVER, TEST, written(tmp_path, *lines), answered=400)
    assert run.invalid == "LoadGen does not say why"


def test_a_log_that_is_missing_or_breaks_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="left no"):
        read_log(tmp_path)
    with pytest.raises(FileFormatError, match="breaks off"):
        read_log(written(tmp_path, line("requested_scenario", "Server")))


def test_a_failure_under_load_ends_the_test_with_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen has no wheel for this Python")
    calls = 0

    def fails_later() -> None:
        nonlocal calls
        calls += 1
        time.sleep(1e-4)
        if calls > 2 * WARMUP_CALLS + 10:
            raise ValueError("no such row")

    with pytest.raises(BenchmarkError, match="'server' fails: ValueError: no such row"):
        run_load_test(SERVER, [fails_later], TEST, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latency_bound_ms": 0.0}, "latency_bound_ms above 0, got 0.0"),
        ({"qps": -1.0}, "qps above 0"),
        ({"seconds": float("nan")}, "seconds above 0"),
        ({"threads": 0}, "threads above 0"),
        ({"min_queries": 0}, "min_queries above 0"),
    ],
)
def test_impossible_tests_are_refused(settings: dict[str, Any], message: str) -> None:
    possible: dict[str, Any] = {"latency_bound_ms": 1.0, "qps": None, "seconds": 1.0, "min_queries": 1, "threads": 1}
    LoadTest(**possible)
    with pytest.raises(BenchmarkError, match=message):
        LoadTest(**{**possible, **settings})
