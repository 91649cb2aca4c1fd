from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cost.scale import MEMORY_COLUMNS, RATE_COLUMNS, memory_rows, rate_rows, site_rows, slope
from benchmarks.cost.scale_calibration import CalibrationRun, column_names, write_data

RUN = CalibrationRun(
    processes=1,
    rows=1_000,
    seconds=4.0,
    peak_above=9_000,
    resident=[(100 * part, 5_000 if part < 5 else 2_000 + 300 * part) for part in range(1, 11)],
    alive=[(500, 7_000_000), (1_000, 7_100_000)],
    reduced_bytes=100,
    site_bytes={"a": 10, "b": 40, "c": 5, "d": 20, "e": 15, "f": 7, "g": 3},
    table_bytes=60,
)


def test_rates_are_medians_and_ratios_are_taken_within_a_turn() -> None:
    two = replace(RUN, processes=2, seconds=2.0)
    turns = [[RUN, two], [replace(RUN, seconds=6.0), replace(two, seconds=2.5)]]
    one, both = (dict(zip(RATE_COLUMNS, row, strict=True)) for row in rate_rows(turns, size=10_000_000))
    assert (one["seconds"], one["rows/s"], one["MB/s of Parquet"]) == ("5.0", "200", "2.0")
    assert both["times 1 process"] == "2.20 (2.00 to 2.40)"


def test_the_slope_is_that_of_the_second_half() -> None:
    assert slope(RUN) == pytest.approx(3.0)
    rows = [dict(zip(MEMORY_COLUMNS, row, strict=True)) for row in memory_rows(RUN)]
    assert rows[-1] == {
        "rows read": "1,000", "tensors alive MB": "7.1", "resident above warm-up MB": "0.0",
    }  # fmt: skip


def test_bytes_of_all_sites_are_shown_or_added_up() -> None:
    shown = dict(site_rows(RUN))
    assert list(shown) == ["b", "d", "e", "a", "f", "2 others", "all", "of those, counts of lookups"]
    assert shown["2 others"] == "8"


def test_data_have_the_columns_and_rows_asked_for(tmp_path) -> None:
    pytest.importorskip("pyarrow")
    from afm_fx.data.data_files import open_data
    from afm_fx.data.parquet_files import ParquetData

    assert write_data(tmp_path, 1_001) > 39 * 1_001
    file = open_data(tmp_path)
    assert isinstance(file, ParquetData)
    assert file.rows == 1_001
    assert set(column_names()) == set(file.names)
    assert [part.rows for part in file.files] == [251, 250, 250, 250]
