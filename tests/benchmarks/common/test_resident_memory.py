from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.common.resident_memory import peak_bytes, reset_peak, resident_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells")


def test_the_peak_remembers_what_was_freed_and_starts_anew_when_reset() -> None:
    size = 200_000_000
    reset_peak()
    before = resident_bytes()
    block = torch.ones(size // 4)
    assert block.sum() > 0
    del block
    assert peak_bytes() - before > 0.9 * size
    reset_peak()
    assert peak_bytes() - before < 0.5 * size
