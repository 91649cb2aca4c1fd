from __future__ import annotations

import torch

from afm_fx.program.capture import capture
from benchmarks.apply_memory import LargeTableModel
from benchmarks.calibration_cost import calibration_cost, interleave


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
