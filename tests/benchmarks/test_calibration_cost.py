from __future__ import annotations

from benchmarks.calibration_cost import interleave


def test_actions_take_turns_in_alternating_order_after_a_warm_up() -> None:
    log: list[str] = []
    spent = interleave((lambda: log.append("a"), lambda: log.append("b")), repeats=3)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    assert spent.shape == (2, 3)
    assert (spent > 0).all()
