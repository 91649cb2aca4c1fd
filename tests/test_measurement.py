from __future__ import annotations

import dataclasses
import json

import pytest

from afm_fx.errors import FileFormatError
from afm_fx.latencies import Latencies
from afm_fx.machine import Machine
from afm_fx.measurement import Measurement, Timing


def timing(contender: str, batch_size: int, p50: float, ratio: float) -> Timing:
    return Timing(
        contender, "ONNX Runtime", batch_size, False, Latencies(500, p50, 2 * p50, 3 * p50, None), 1234.5,
        (0.8 * p50, p50), ratio, (0.9 * ratio, ratio),
    )  # fmt: skip


@pytest.fixture
def result() -> Measurement:
    return Measurement(
        machine=Machine("Some CPU", 2, "Linux x86_64", "3.11.0", (("torch", "2.11.0"), ("onnxruntime", "1.32.0"))),
        batch_sizes=(1, 256),
        threads=1,
        seconds=1.0,
        rounds=10,
        seed=0,
        timings=(
            timing("dense", 1, 152.0, 1.0),
            timing("low rank", 1, 109.0, 0.717),
            timing("dense", 256, 1995.0, 1.0),
            timing("low rank", 256, 959.0, 0.481),
        ),
    )


def on_device(result: Measurement) -> Measurement:
    """The same with the second contender on a device, which the first has nothing to compare with."""
    there = dataclasses.replace(
        result.timings[1], on_device=True, latencies=Latencies(3_000, 41.0, 42.0, 43.0, 44.0), ratio=None,
        ratio_range=None,
    )  # fmt: skip
    return dataclasses.replace(result, timings=(*result.timings[:2], there, *result.timings[2:]))


def test_json_gives_the_same_result_back(result: Measurement) -> None:
    assert Measurement.from_json(result.to_json()) == result
    assert Measurement.from_json(on_device(result).to_json()) == on_device(result)


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


def test_on_the_cpu_calls_are_of_one_kind(result: Measurement) -> None:
    assert "call" not in result.columns
    assert "device" not in result.conditions()


def test_calls_on_a_device_have_rows_of_their_own(result: Measurement) -> None:
    mixed = on_device(result)
    rows = [dict(zip(mixed.columns, row, strict=True)) for row in mixed.rows()]
    assert [row["call"] for row in rows] == ["end-to-end", "end-to-end", "device-only", "end-to-end", "end-to-end"]
    assert [row["p50 us"] for row in rows[:3]] == ["152", "109", "41"]
    assert [row["p50 / dense"] for row in rows[:3]] == ["1.000", "0.717", "-"]
    assert mixed.timing("low rank", 1, on_device=True).p50_us == 41.0
    assert "copies from and to host memory" in mixed.conditions()


def test_a_timing_is_found_by_name_and_batch(result: Measurement) -> None:
    assert result.timing("low rank", 256).p50_us == 959.0
    assert result.contenders == ("dense", "low rank")
    with pytest.raises(KeyError, match="'low rank' at batch 7"):
        result.timing("low rank", 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "the measurement is damaged"),
        (lambda _: "[]", "it does not say its version"),
        (lambda text: text.replace('"version":3', '"version":2'), "is of version 2, this release reads version 3"),
        (lambda text: text.replace("p50_us", "p51_us"), "p50_us"),
        (lambda text: json.dumps({**json.loads(text), "timings": 3}), r"array.*\$.timings"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(result: Measurement, change, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Measurement.from_json(change(result.to_json()))
