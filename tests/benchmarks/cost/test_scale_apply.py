from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.cost.scale_apply import COLUMNS, RANK, WIDTH, measure, row_of


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells")
def test_a_table_on_disk_becomes_the_codes_that_memory_would_hold(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    rows = 12_000
    found = measure(rows, 2, tmp_path)
    assert found.table_bytes == rows * WIDTH * 4
    assert rows * RANK * 4 < found.written_bytes < 2 * rows * RANK * 4
    assert found.difference < 1e-6
    assert found.onnx_bytes < 20_000  # the codes lie in their own file
    assert len(found.copy_seconds) == len(found.apply_seconds) == 2
    assert 0 < found.baseline <= found.peak
    assert len(row_of(found)) == len(COLUMNS)
