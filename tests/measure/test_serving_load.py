"""Load tests with MLPerf LoadGen against servers whose speed is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from afm_fx.commands.cli import app
from afm_fx.errors import BenchmarkError, FileFormatError
from afm_fx.io.machine import this_machine
from afm_fx.measure.contenders import Contender
from afm_fx.measure.latencies import Latencies
from afm_fx.measure.loadgen import SUMMARY, WARMUP_CALLS, LoadRun, LoadTest
from afm_fx.measure.serving_load import (
    MOST_PROBES,
    PRECISION,
    STEP_BACK,
    LoadResult,
    highest_qps,
    load_test,
    requests_of,
)

NAP = 1e-3
"""Seconds that the fake server takes for a request."""

ROWS = torch.arange(12.0).unsqueeze(1)


class Server:
    """Naps for every request and notes the rows and the thread."""

    def __init__(self) -> None:
        self.seen: set[tuple[float, ...]] = set()
        self.threads: list[int] = []

    def __call__(self, rows: Tensor) -> None:
        self.seen.add(tuple(rows.flatten().tolist()))
        self.threads.append(threading.get_ident())
        time.sleep(NAP)


def test_random_arrivals_are_answered_from_a_thread_of_its_own_and_logs_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen has no wheel for this Python")
    server = Server()
    result = load_test(
        {"a server": server}, ROWS, tmp_path, qps=150.0, latency_bound_ms=500.0, seconds=0.3, min_queries=30,
        batch_size=4,
    )  # fmt: skip
    run = result.runs[0]
    assert run.answered == run.queries == len(server.threads) - 2 * WARMUP_CALLS >= 30
    assert run.target_qps == 150.0
    assert run.latencies.p50_us > 1e6 * NAP
    assert server.seen == {(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)}  # real rows, in requests of the batch size
    assert threading.get_ident() not in server.threads[2 * WARMUP_CALLS :]
    # The bound held, and LoadGen wants 459 requests before it trusts a 99th percentile.
    assert "more queries" in run.invalid
    assert f"a server: {run.invalid}" in result.table()
    assert run.latencies.p99_us is None
    summary = (Path(run.logs) / SUMMARY).read_text()
    assert "Scenario : Server" in summary
    assert "target_latency (ns): 500000000" in summary


def test_the_search_tries_rates_in_short_runs_and_reports_a_valid_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen has no wheel for this Python")
    held = []

    def tried_twice(holds: Callable[[float], bool], first: float) -> float:
        held.extend([holds(first), holds(2_000.0)])
        return 400.0

    monkeypatch.setattr("afm_fx.measure.serving_load.PROBE_SECONDS", 0.1)
    monkeypatch.setattr("afm_fx.measure.serving_load.highest_qps", tried_twice)  # as it is, it takes many seconds
    result = load_test(
        {"server": Server()}, ROWS, tmp_path, latency_bound_ms=30.0, seconds=0.1, min_queries=500,
        batch_size=4,
    )  # fmt: skip
    run = result.runs[0]
    assert held[1] is False  # 1,200 requests arrive in the time of 600, for 20 times the bound
    assert {path.name for path in (tmp_path / "server").iterdir()} >= {"probe-01", "probe-02", "server-1"}
    assert result.valid
    assert run.latencies.p99_us is not None
    assert run.latencies.p99_us <= 30_000


@pytest.mark.parametrize("limit", [3.0, 97.0, 1000.0, 51_234.0])
@pytest.mark.parametrize("first", [50.0, 2_000.0])
def test_the_highest_rate_is_found_within_the_precision(limit: float, first: float) -> None:
    tried: list[float] = []

    def holds(qps: float) -> bool:
        tried.append(qps)
        return qps <= limit

    assert limit / (1 + PRECISION) <= highest_qps(holds, first) <= limit
    assert len(tried) <= MOST_PROBES


def test_a_bound_that_no_rate_holds_is_told() -> None:
    with pytest.raises(BenchmarkError, match="not even"):
        highest_qps(lambda _: False, 1000.0)


@pytest.mark.parametrize("highest_valid", [90.1, 0.0])
def test_a_rate_that_fails_in_the_long_run_is_lowered_until_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, highest_valid: float
) -> None:
    def run(contender: Contender, _calls: object, test: LoadTest, directory: Path) -> LoadRun:
        assert test.qps is not None
        invalid = "" if test.qps < highest_valid else "too slow"
        latencies = Latencies(5, 1.0, None, None, None)
        return LoadRun(contender.name, "torch", invalid, 5, 5, test.qps, test.qps, latencies, directory.as_posix())

    monkeypatch.setattr("afm_fx.measure.serving_load.highest_qps", lambda *_: 100.0)
    monkeypatch.setattr("afm_fx.measure.serving_load.run_load_test", run)
    monkeypatch.setattr("afm_fx.measure.serving_load.warm_up", lambda *_: 1.0)
    if highest_valid:
        (run_,) = load_test({"server": Server()}, ROWS, tmp_path, latency_bound_ms=5.0).runs
        assert run_.qps == pytest.approx(100 * STEP_BACK)
        assert Path(run_.logs).name == "server-2"
    else:
        with pytest.raises(BenchmarkError, match="no long run"):
            load_test({"server": Server()}, ROWS, tmp_path, latency_bound_ms=5.0)


@pytest.mark.parametrize(
    ("contenders", "settings", "message"),
    [
        (["a"], {"batch_size": 0}, "at least 1 row"),
        (["a"], {"qps": -1.0}, "qps above 0"),
        (["a b", "a/b"], {}, "names differ in signs only"),
        ([], {}, "no contenders"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, contenders: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        load_test({name: Server() for name in contenders}, ROWS, tmp_path, **{"latency_bound_ms": 5.0, **settings})
    assert not list(tmp_path.iterdir())


def test_large_requests_are_fewer() -> None:
    assert requests_of(1) == 256
    assert requests_of(1 << 14) == 64
    assert requests_of(1 << 24) == 1


def test_lost_requests_make_a_result_invalid_and_json_gives_it_back() -> None:
    run = LoadRun("a", "torch", "", 5, 5, 2.0, 1.0, Latencies(5, 1.0, None, None, None), "a/server")
    result = LoadResult(this_machine(), 1, 1, LoadTest(5.0, 2.0, 1.0, 1, 1), (run,))
    assert result.valid
    assert not replace(result, runs=(replace(run, answered=4),)).valid
    assert LoadResult.from_json(result.to_json()) == result
    for damaged in ("[]", "{", result.to_json().replace('"version":2', '"version":9')):
        with pytest.raises(FileFormatError):
            LoadResult.from_json(damaged)


def test_the_command_refuses_a_directory_of_logs_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "mlperf_log_detail.txt").write_text("mine")
    result = CliRunner().invoke(app, ["load", "a=x.onnx", "--latency-bound", "10", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
