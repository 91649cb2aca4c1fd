from __future__ import annotations

import json

import pytest

from afm_fx.errors import BenchmarkError, FileFormatError
from afm_fx.io.machine import Machine
from afm_fx.measure.latencies import Latencies
from afm_fx.measure.measurement import Measurement, Timing


def timing(contender: str, batch_size: int, p50: float, ratio: float) -> Timing:
    return Timing(
        contender, "ONNX Runtime", batch_size, Latencies(500, p50, 2 * p50, 3 * p50, None), 1234.5,
        ratio, (0.9 * ratio, ratio),
    )  # fmt: skip


@pytest.fixture
def result() -> Measurement:
    return Measurement(
        machine=Machine("Some CPU", 2, "Linux x86_64", "3.11.0", (("torch", "2.11.0"), ("onnxruntime", "1.32.0"))),
        batch_sizes=(1, 256),
        threads=1,
        seconds=1.0,
        rounds=10,
        timings=(
            timing("dense", 1, 152.0, 1.0),
            timing("low rank", 1, 109.0, 0.717),
            timing("dense", 256, 1995.0, 1.0),
            timing("low rank", 256, 959.0, 0.481),
        ),
    )


def test_json_gives_the_same_result_back(result: Measurement) -> None:
    assert Measurement.from_json(result.to_json()) == result


def test_the_table_shows_every_timing_and_the_conditions(result: Measurement) -> None:
    text = result.table()
    expected = (
        "p50 / dense", "low rank", "1,995", "0.481", "Some CPU", "onnxruntime 1.32.0", "1 thread",
        "10 interleaved rounds", "500",
    )  # fmt: skip
    for part in expected:
        assert part in text
    assert len([line for line in text.splitlines() if "ONNX Runtime" in line]) == 4


def test_a_percentile_without_enough_calls_is_a_dash_that_is_explained(result: Measurement) -> None:
    assert [row[result.columns.index("p99.9 us")] for row in result.rows()] == ["-"] * 4
    assert "p99.9 2,995" in result.conditions()


def test_a_timing_is_found_by_name_and_batch(result: Measurement) -> None:
    assert result.timing("low rank", 256).p50_us == 959.0
    assert result.contenders == ("dense", "low rank")
    with pytest.raises(BenchmarkError, match="'low rank' at batch 7"):
        result.timing("low rank", 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "the measurement is damaged"),
        (lambda _: "[]", "it does not say its version"),
        (lambda text: text.replace('"version":4', '"version":2'), "is of version 2, this release reads version 4"),
        (lambda text: text.replace("p50_us", "p51_us"), "p50_us"),
        (lambda text: json.dumps({**json.loads(text), "timings": 3}), r"array.*\$.timings"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(result: Measurement, change, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Measurement.from_json(change(result.to_json()))
