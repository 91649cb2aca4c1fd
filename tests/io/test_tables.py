from __future__ import annotations

import os
import shutil
import sys

import pytest

from afm_fx.io.tables import WIDTH, render_sections, render_table, text_width


class Terminal:
    def __init__(self, *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def test_a_table_is_as_wide_as_the_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal(is_terminal=True))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback: os.terminal_size((97, 24)))
    assert text_width() == 97


def test_a_table_for_a_file_does_not_ask_the_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal(is_terminal=False))
    monkeypatch.setenv("COLUMNS", "90")
    assert text_width() == WIDTH


@pytest.mark.parametrize("width", [60, 100, 120])
def test_no_line_is_wider_than_asked_and_no_word_is_lost(width):
    reason = "a Linear takes the decoder into its weight, so the features are never built"
    drawn = [
        render_table("", ("site", "rank", "reason"), [("tables.0", 3, reason)], text=("reason",), width=width),
        render_sections([("tables.0", [("absorbed", "aten.linear", reason)])], width=width),
    ]
    for text in drawn:
        assert max(map(len, text.splitlines())) <= width
        assert set(reason.split()) <= set(text.split())


def test_numbers_stand_to_the_right_and_text_to_the_left():
    text = render_table("", ("site", "rank", "reason"), [("a", 3, "x"), ("b", 1234, "long")], text=("reason",))
    lines = text.splitlines()[-2:]
    assert lines[0].index("3") == lines[1].index("4")
    assert lines[0].index("x") == lines[1].index("l")


def test_brackets_and_colons_are_shown_as_they_stand():
    cell = "torch.cat([one, two]) [bold] :smile:"
    assert cell in render_table("", ("source",), [(cell,)])
    assert cell in render_sections([(f"heading {cell}", [("absorbed", cell)])])


def test_the_rows_of_all_sections_are_aligned():
    text = render_sections([("one", [("a", "reason")]), ("two", [("much longer", "reason")])])
    first, second = (line for line in text.splitlines() if "reason" in line)
    assert first.index("reason") == second.index("reason")
