from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.cost.large_file import (
    EXPORT_COLUMNS,
    KINDS,
    SERVE_COLUMNS,
    ExportMemory,
    ServeMemory,
    export_rows,
    measure_export,
    measure_serving,
    serve_rows,
)


def test_ratios_are_in_sizes_of_the_file() -> None:
    export = ExportMemory("one file", 10, file_bytes=100, before_model=50, before_export=150, peak=230, seconds=1.0,
                          difference=0.0)  # fmt: skip
    assert export.whole == 1.8
    (row,) = export_rows([export])
    assert dict(zip(EXPORT_COLUMNS, row, strict=True))["peak / file"] == "1.80"
    serve = ServeMemory("one file", file_bytes=100, before=50, mapped_before=5, peak_open=75, after_open=60,
                        mapped_open=5, after_serving=90, mapped_serving=30, open_seconds=0.1)  # fmt: skip
    assert (serve.opened, serve.own) == (0.25, 0.15)
    (row,) = serve_rows([serve])
    assert dict(zip(SERVE_COLUMNS, row, strict=True))["mapped pages / file"] == "0.250"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells")
@pytest.mark.parametrize("kind", KINDS)
def test_each_half_measures_what_a_small_table_takes(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exported, served = measure_export(kind, 2000, tmp_path), measure_serving(kind, 2000, tmp_path)
    assert 2000 * 16 * 4 < exported.file_bytes < 2 * 2000 * 16 * 4
    assert exported.difference < 1e-5
    assert 0 < exported.before_model <= exported.peak
    assert served.file_bytes == exported.file_bytes
    assert 0 < served.before <= served.peak_open
