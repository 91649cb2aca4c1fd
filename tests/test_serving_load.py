"""MLPerf LoadGen against servers whose speed is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from afm_fx.cli import app
from afm_fx.errors import BenchmarkError, FileFormatError
from afm_fx.load_result import LoadResult, LoadRun
from afm_fx.loadgen import WARMUP_CALLS, LoadTest, Scenario, run_load_test
from afm_fx.loadgen_log import SUMMARY
from afm_fx.machine import this_machine
from afm_fx.serving_load import load_test, requests_of

pytest.importorskip("mlperf_loadgen", reason="MLPerf LoadGen has no wheel for this Python")

NAP = 1e-3
"""Seconds that the fake server takes for a request."""

ROWS = torch.arange(12.0).unsqueeze(1)
QUICK: dict[str, Any] = {"seconds": 0.3, "min_queries": 40, "batch_size": 4}


class Server:
    """Naps for every request and notes the rows and the thread."""

    def __init__(self) -> None:
        self.seen: set[tuple[float, ...]] = set()
        self.threads: list[int] = []

    def __call__(self, rows: Tensor) -> None:
        self.seen.add(tuple(rows.flatten().tolist()))
        self.threads.append(threading.get_ident())
        time.sleep(NAP)


def test_single_stream_sends_the_next_request_when_the_last_is_answered(tmp_path: Path) -> None:
    server = Server()
    result = load_test({"server": server}, ROWS, tmp_path, scenario="single-stream", **QUICK)
    run = result.run("server")
    assert result.valid
    assert run.answered == run.queries == len(server.threads) - 2 * WARMUP_CALLS
    assert run.p50_us > 1e6 * NAP
    assert run.qps < 1 / NAP
    assert server.seen == {(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)}  # real rows, in requests of the batch size


def test_a_server_answers_random_arrivals_from_a_thread_of_its_own_and_its_logs_are_kept(tmp_path: Path) -> None:
    server = Server()
    result = load_test(
        {"a server": server}, ROWS, tmp_path, scenario="server", qps=150.0, latency_bound_ms=500.0,
        **{**QUICK, "min_queries": 30},
    )  # fmt: skip
    run = result.runs[0]
    assert run.answered == run.queries >= 30
    assert run.target_qps == 150.0
    assert set(server.threads[2 * WARMUP_CALLS :]) != {threading.get_ident()}
    assert not run.valid  # the bound held, and LoadGen wants 459 requests before it trusts a 99th percentile
    assert "more queries" in run.reason
    assert run.p99_us is None
    summary = (tmp_path / run.logs / SUMMARY).read_text()
    assert "Scenario : Server" in summary
    assert "target_latency (ns): 500000000" in summary


def test_offline_has_all_requests_at_once_and_counts_each(tmp_path: Path) -> None:
    server = Server()
    result = load_test({"server": server}, ROWS, tmp_path, scenario="offline", **QUICK)
    run = result.runs[0]
    assert result.valid
    assert run.queries == run.answered == len(server.threads) - 2 * WARMUP_CALLS
    assert run.qps == pytest.approx(run.queries / (run.max_us / 1e6), rel=0.01)  # LoadGen's own numbers agree
    assert "p50 us" not in result.columns


def test_the_search_tries_rates_in_short_runs_and_reports_a_valid_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def tried_twice(holds: Callable[[float], bool], first: float) -> float:
        held.extend([holds(first), holds(2_000.0)])
        return 400.0

    monkeypatch.setattr("afm_fx.serving_load.highest_qps", tried_twice)  # as it is, it takes many seconds
    result = load_test(
        {"server": Server()}, ROWS, tmp_path, scenario="server", latency_bound_ms=30.0, probe_seconds=0.1, seconds=0.1,
        min_queries=500, batch_size=4,
    )  # fmt: skip
    run = result.runs[0]
    assert held[1] is False  # 1,200 requests arrive in the time of 600
    assert [probe.logs for probe in result.probes] == ["server/probe-01", "server/probe-02"]
    assert result.probes[1].queries > 1_000  # for 20 times the bound, though a tenth of a second was asked for
    assert result.valid
    assert run.p99_us is not None
    assert run.p99_us <= 30_000


def test_a_failure_under_load_ends_the_test_with_its_reason(tmp_path: Path) -> None:
    calls = 0

    def fails_later() -> None:
        nonlocal calls
        calls += 1
        time.sleep(1e-4)
        if calls > 2 * WARMUP_CALLS + 10:
            raise ValueError("no such row")

    for scenario in Scenario:
        calls = 0
        test = LoadTest(scenario, 0.1, 50, qps=2000.0, latency_bound_ms=100.0)
        with pytest.raises(BenchmarkError, match="failed under load: ValueError: no such row"):
            run_load_test([fails_later], test, tmp_path / scenario.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "server"}, "needs a latency bound"),
        ({"scenario": "offline", "qps": 5.0}, "belong to the scenario server"),
        ({"scenario": "server", "latency_bound_ms": 5.0, "qps": -1.0}, "rate must be positive"),
        ({"scenario": "offline", "batch_size": 0}, "must be at least 1"),
        ({"scenario": "offline", "seconds": 0.0}, "durations must be positive"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        load_test({"server": Server()}, ROWS, tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_names_that_would_share_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="names differ in signs only"):
        load_test({"a b": Server(), "a/b": Server()}, ROWS, tmp_path, scenario="offline")


def test_memory_growth_leaves_out_how_a_run_begins() -> None:
    def run(*resident: int) -> LoadRun:
        return LoadRun("a", "torch", True, "", 1, 1, None, 1.0, 1.0, 1.0, None, None, None, 1.0, resident, "")

    assert run(0, 1, 2, 50, 50, 50, 50, 51, 51).memory_growth == 1
    assert run(9, 9, 9, 50, 50, 50, 40, 40, 40).memory_growth == -10
    assert run(1, 2, 3).memory_growth is None


def test_large_requests_are_fewer() -> None:
    assert requests_of(1) == 256
    assert requests_of(1 << 14) == 64
    assert requests_of(1 << 24) == 1


def test_lost_requests_make_a_result_invalid() -> None:
    run = LoadRun("a", "torch", True, "", 5, 4, None, 1.0, 1.0, 1.0, None, None, None, 1.0, (), "a/offline")
    result = LoadResult(this_machine(), Scenario.OFFLINE, 1, 1, 1, 1.0, 1, None, 0, (run,))
    assert not result.valid
    assert LoadResult.from_json(result.to_json()) == result
    for damaged in ("[]", "{", result.to_json().replace('"version": 1', '"version": 9')):
        with pytest.raises(FileFormatError):
            LoadResult.from_json(damaged)
    assert result.to_csv().splitlines()[1].startswith("offline,1,a,torch,True,,5,4,,1.0,")


def test_the_command_refuses_a_directory_of_logs_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "mlperf_log_detail.txt").write_text("mine")
    result = CliRunner().invoke(app, ["load", "a=x.onnx", "--scenario", "offline", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
