from __future__ import annotations

import sys

import pytest
import torch

from afm_fx.program.capture import capture
from benchmarks.common.fresh_process import run_apart
from benchmarks.common.large_table import LargeTableModel
from benchmarks.cost.cost import ApplyMemory, apply_memory, calibration_cost, interleave


def test_actions_take_turns_in_alternating_order_after_a_warm_up() -> None:
    log: list[str] = []
    spent = interleave((lambda: log.append("a"), lambda: log.append("b")), repeats=3)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    assert spent.shape == (2, 3)
    assert (spent > 0).all()


def test_calibration_is_measured_against_inference_and_threads_are_restored() -> None:
    program = capture(LargeTableModel(50, 4).eval(), torch.randint(0, 50, (4, 2)))
    before = torch.get_num_threads()
    cost = calibration_cost(program, torch.randint(0, 50, (256, 2)), batch_size=64, threads=before + 1, repeats=3)
    assert torch.get_num_threads() == before
    assert (cost.rows, cost.repeats, cost.threads, cost.batch_size) == (256, 3, before + 1, 64)
    assert cost.inference_seconds > 0
    assert cost.ratio_range[0] <= cost.ratio <= cost.ratio_range[1]


def test_ratios_are_in_sizes_of_the_model() -> None:
    memory = ApplyMemory(
        table_rows=10, model_bytes=100, result_bytes=20, before_model=50, before_apply=160,
        peak=175, seconds=0.1,
    )  # fmt: skip
    assert memory.whole == 1.25
    assert memory.apply_alone == 0.15


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells")
def test_a_fresh_process_reports_the_bytes_of_both_models() -> None:
    memory = run_apart(apply_memory, 2000)
    assert memory.model_bytes >= 2000 * 16 * 4
    assert 2000 * 2 * 4 <= memory.result_bytes < memory.model_bytes / 2
    assert 0 < memory.before_model <= memory.peak
