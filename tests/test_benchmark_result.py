from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest

from afm_fx.benchmark_result import BenchmarkResult, Settings, Timing
from afm_fx.errors import FileFormatError
from afm_fx.footprint import Footprint
from afm_fx.latencies import Latencies
from afm_fx.machine import Machine


def timing(contender: str, batch_size: int, p50: float, ratio: float) -> Timing:
    return Timing(
        contender, "ONNX Runtime", "cpu", batch_size, 10, Latencies(500, p50, 2 * p50, 3 * p50, None), None, 1234.5,
        (0.8 * p50, p50), ratio, (0.9 * ratio, ratio),
    )  # fmt: skip


@pytest.fixture
def result() -> BenchmarkResult:
    return BenchmarkResult(
        machine=Machine("Some CPU", 2, "Linux x86_64", "3.11.0", (("torch", "2.11.0"), ("onnxruntime", "1.32.0"))),
        settings=Settings((1, 256), 1, 1.0, 30, 10_000, 10, 10, 0),
        timings=(
            timing("dense", 1, 152.0, 1.0),
            timing("low rank", 1, 109.0, 0.717),
            timing("dense", 256, 1995.0, 1.0),
            timing("low rank", 256, 959.0, 0.481),
        ),
        footprints=(Footprint("dense", 0.25, 0.01, 70_000_000, 99_000_000, None, None),),
    )


def on_device(result: BenchmarkResult) -> BenchmarkResult:
    """The same with the first contender on a device."""
    first = dataclasses.replace(
        result.timings[0], device="cuda", device_only=Latencies(3_000, 41.0, 42.0, 43.0, 44.0), device_only_ratio=1.0
    )
    return dataclasses.replace(result, timings=(first, *result.timings[1:]))


def test_json_gives_the_same_result_back(result: BenchmarkResult) -> None:
    assert BenchmarkResult.from_json(result.to_json()) == result
    assert BenchmarkResult.from_json(on_device(result).to_json()) == on_device(result)


def test_the_table_shows_every_timing_the_memory_and_the_conditions(result: BenchmarkResult) -> None:
    text = result.table()
    expected = (
        "p50 / dense", "low rank", "1,995", "0.481", "Some CPU", "onnxruntime 1.32.0", "1 thread", "warm-up 10", "500",
        "host MB peak", "99",
    )  # fmt: skip
    for part in expected:
        assert part in text
    assert len([line for line in text.splitlines() if "ONNX Runtime" in line]) == 4


def test_a_percentile_without_enough_calls_is_a_dash_that_is_explained(result: BenchmarkResult) -> None:
    assert [row[result.columns.index("p99.9 us")] for row in result.rows()] == ["-"] * 4
    assert "p99.9 2,995" in result.conditions()


def test_on_the_cpu_there_is_one_column_of_latencies_and_the_report_says_so(result: BenchmarkResult) -> None:
    assert not any("device-only" in column or "end-to-end" in column for column in result.columns)
    assert "no device to time apart" in result.conditions()


def test_a_device_has_its_own_columns_and_the_cpu_beside_it_a_dash(result: BenchmarkResult) -> None:
    mixed = on_device(result)
    rows = [dict(zip(mixed.columns, row, strict=True)) for row in mixed.rows()]
    assert rows[0]["device-only p50 us"] == "41"
    assert rows[0]["end-to-end p50 us"] == "152"
    assert rows[1]["device-only p50 us"] == "-"
    assert "copies from and to host memory" in mixed.conditions()


def test_csv_has_a_line_per_timing_and_empty_cells_for_what_was_not_measured(result: BenchmarkResult) -> None:
    lines = list(csv.DictReader(io.StringIO(on_device(result).to_csv())))
    assert len(lines) == 4
    assert float(lines[0]["p50_us"]) == 152.0
    assert float(lines[0]["device_only_p99_us"]) == 43.0
    assert (lines[1]["device_only_p99_us"], lines[1]["p999_us"], lines[1]["host_bytes_peak"]) == ("", "", "")
    assert int(lines[2]["host_bytes_peak"]) == 99_000_000


def test_a_timing_is_found_by_name_and_batch(result: BenchmarkResult) -> None:
    assert result.timing("low rank", 256).p50_us == 959.0
    assert result.contenders == ("dense", "low rank")
    with pytest.raises(KeyError, match="'low rank' at batch 7"):
        result.timing("low rank", 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "not a benchmark result"),
        (lambda _: "[]", "not a benchmark result"),
        (lambda text: text.replace("afm_fx.benchmark", "something else"), "format"),
        (lambda text: text.replace('"version": 2', '"version": 1'), "version 1; 2 is read here, so measure again"),
        (lambda text: text.replace("p50_us", "p51_us"), "damaged"),
        (lambda text: json.dumps({**json.loads(text), "timings": 3}), "damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(result: BenchmarkResult, change, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        BenchmarkResult.from_json(change(result.to_json()))
