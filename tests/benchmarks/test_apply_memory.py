from __future__ import annotations

import sys

import pytest

from benchmarks.apply_memory import ApplyMemory, measure_apart


def test_ratios_are_in_sizes_of_the_model() -> None:
    memory = ApplyMemory(
        table_rows=10, width=16, code_width=2, model_bytes=100, result_bytes=20, before_model=50, before_apply=160,
        peak=175, seconds=0.1,
    )  # fmt: skip
    assert memory.whole == 1.25
    assert memory.apply_alone == 0.15


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells")
def test_a_fresh_process_reports_the_bytes_of_both_models() -> None:
    memory = measure_apart(rows=2000, width=16, code_width=2)
    assert memory.model_bytes >= 2000 * 16 * 4
    assert 2000 * 2 * 4 <= memory.result_bytes < memory.model_bytes / 2
    assert 0 < memory.before_model <= memory.peak
