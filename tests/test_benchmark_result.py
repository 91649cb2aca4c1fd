from __future__ import annotations

import json

import pytest

from afm_fx.benchmark_result import BenchmarkResult, Settings, Timing
from afm_fx.errors import FileFormatError
from afm_fx.machine import Machine


def timing(contender: str, batch_size: int, p50: float, ratio: float) -> Timing:
    return Timing(
        contender, "ONNX Runtime", batch_size, 10, 500, p50, 2 * p50, 3 * p50, 1234.5, ratio, (0.9 * ratio, ratio)
    )


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
    )


def test_json_gives_the_same_result_back(result: BenchmarkResult) -> None:
    assert BenchmarkResult.from_json(result.to_json()) == result


def test_the_table_shows_every_timing_and_the_conditions(result: BenchmarkResult) -> None:
    text = result.table()
    expected = ("p50 / dense", "low rank", "1,995", "0.481", "Some CPU", "onnxruntime 1.32.0", "1 thread", "warm-up 10")
    for part in expected:
        assert part in text
    assert len([line for line in text.splitlines() if "ONNX Runtime" in line]) == 4


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
        (lambda text: text.replace('"version": 1', '"version": 99'), "version 99"),
        (lambda text: text.replace("p50_us", "p51_us"), "damaged"),
        (lambda text: json.dumps({**json.loads(text), "timings": 3}), "damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(result: BenchmarkResult, change, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        BenchmarkResult.from_json(change(result.to_json()))
