from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.large_file_command import EXPORT_COLUMNS, SERVE_COLUMNS, export_rows, serve_rows
from benchmarks.large_file_memory import ExportMemory, ServeMemory, export_apart, serve_apart


def test_ratios_are_in_sizes_of_the_file() -> None:
    export = ExportMemory("one file", 10, 16, file_bytes=100, before_model=50, before_export=150, peak=230, seconds=1.0,
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
def test_fresh_processes_export_and_serve_a_small_table(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exported = export_apart("buckets", 2000, 16, tmp_path)
    assert 2000 * 16 * 4 < exported.file_bytes < 2 * 2000 * 16 * 4
    assert exported.difference < 1e-5
    served = serve_apart("buckets", 2000, 16, tmp_path)
    assert served.file_bytes == exported.file_bytes
    assert 0 < served.before <= served.peak_open
