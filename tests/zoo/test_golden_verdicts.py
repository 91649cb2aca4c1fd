"""Which uses are absorbed, on codes, restored or refused in every covered model: nothing changes unseen."""

from __future__ import annotations

import difflib

import pytest

from tests.zoo.entry import ZooEntry
from tests.zoo.golden import COMMAND, FATES, PAGE, as_json, as_page, covered, read, uses
from tests.zoo.models import captured, zoo_params


@pytest.mark.parametrize("entry", zoo_params())
def test_the_verdicts_are_the_golden_ones(entry: ZooEntry) -> None:
    golden, found = read().get(entry.name, ()), uses(captured(entry.name)[1])
    changes = difflib.unified_diff(
        as_json({entry.name: golden}).splitlines(), as_json({entry.name: found}).splitlines(), "golden", "now", n=0
    )
    assert found == golden, "\n".join(
        [f"the verdicts of {entry.name} changed; if that is meant, run `{COMMAND}` and read the diff", *changes]
    )


def test_the_golden_verdicts_are_those_of_the_zoo_and_show_every_fate() -> None:
    golden = read()
    assert list(golden) == covered(), f"run `{COMMAND}`"
    assert {use.fate for uses_of in golden.values() for use in uses_of} == set(FATES)
    assert all(use.count and use.reason for uses_of in golden.values() for use in uses_of)


def test_the_page_for_people_is_the_golden_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_page(read()), f"run `{COMMAND}`"
