from __future__ import annotations

import os

import pytest

from benchmarks.common.fresh_process import run_apart


def test_a_function_is_called_in_another_process_and_its_errors_come_back() -> None:
    assert run_apart(os.getpid) != os.getpid()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_apart(os.stat, "nowhere")
