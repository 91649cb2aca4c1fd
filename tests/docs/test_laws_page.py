"""The documented table of laws is that of the code."""

from __future__ import annotations

from passes.laws import table as laws
from tests.docs.laws_page import COMMAND, PAGE, as_page


def test_the_page_is_what_the_code_says_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_page(), f"write it again: {COMMAND}"


def test_every_law_of_every_kind_of_operand_is_on_the_page() -> None:
    page = as_page()
    for entries in laws.tables().values():
        for name, entry in entries.items():
            assert f"`{name.replace('<built-in function getitem>', 'operator.getitem')}`" in page
            assert entry.rule is None or entry.rule.__doc__
