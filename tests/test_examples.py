"""The examples run and say what they promise."""

from __future__ import annotations

import re

import pytest

from examples import pass_manager


def test_the_pass_manager_example_shrinks_the_tables_and_keeps_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    pass_manager.main()
    printed = capsys.readouterr().out
    found = re.search(r"tables: ([\d,]+) bytes before, ([\d,]+) after", printed)
    assert found is not None
    before, after = (int(number.replace(",", "")) for number in found.groups())
    assert after == before // 4  # 4 of 16 columns
    difference = re.search(r"largest difference to the model: (\S+)", printed)
    assert difference is not None
    assert float(difference.group(1)) < 0.05
