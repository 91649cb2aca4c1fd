"""The code blocks of a Markdown page, and how they are run.

A block right below a comment ``<!-- not run: reason -->`` is left out, one below ``<!-- needs: package -->`` where that
package is not installed. What a page prints is not compared; what it asserts is.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afm_fx.commands.cli import app
from passes.laws import table as laws

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(
    r"^(?:<!-- not run:(?P<reason>[^\n]*)-->\n|<!-- needs: (?P<package>\w+) -->\n)?"
    r"```(?P<language>python|console)\n(?P<text>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)

QUICK = {
    "bench": {"--seconds": "0.01", "--batch-sizes": "1,8"},
    "load": {"--seconds": "1"},
    "examples.click_model": {"--rows": "2048"},
}
"""Options that make a documented command quick, where it does not give them itself; a flag has no value."""


@dataclass(frozen=True)
class Block:
    """One block of code.

    Attributes:
        language: python or console.
        text: its lines.
        line: of the page, where it starts.
        not_run: why it is not run, None where it is.
        package: that it needs, None where nothing but this project's is needed.
    """

    language: str
    text: str
    line: int
    not_run: str | None
    package: str | None = None

    @property
    def runs(self) -> bool:
        """Whether it can be run here."""
        return self.not_run is None and (self.package is None or importlib.util.find_spec(self.package) is not None)


def blocks_of(page: str) -> list[Block]:
    """The blocks of Python and of commands, in order."""
    return [
        Block(
            found["language"],
            found["text"],
            page.count("\n", 0, found.start("text")) + 1,
            None if found["reason"] is None else found["reason"].strip(),
            found["package"],
        )
        for found in _FENCE.finditer(page)
    ]


def run_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a page's blocks one after the other in the working directory; Python shares one namespace.

    Returns:
        How many were run.
    """
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr("afm_fx.commands.compress_files.TIMED_SECONDS", 0.01)
    page = path.read_text(encoding="utf-8")
    monkeypatch.setattr(laws, "_TABLE", dict(laws._TABLE))  # what a page registers is gone with it
    variables: dict[str, object] = {"__name__": "page"}
    run = [block for block in blocks_of(page) if block.runs]
    for block in run:
        if block.language == "python":
            blank = "\n" * (block.line - 1)  # so that a traceback shows the page's own lines
            exec(compile(blank + block.text, str(path), "exec"), variables)  # noqa: S102 - the page is ours
        else:
            for command in commands_of(block):
                run_command(command, monkeypatch)
    return len(run)


def commands_of(block: Block) -> Iterator[list[str]]:
    """The commands of a console block, each as its words; a backslash at its end carries a line on."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield shlex.split(line.removeprefix("$ "))


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs ``afm-fx ...`` or ``python -m ...`` in this process."""
    program, name, *rest = words
    if program == "python" and name == "-m":
        name, *rest = rest
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [name, *_quick(name, rest)])
            runpy.run_module(name, run_name="__main__")
        return
    assert program == "afm-fx", words
    result = CliRunner().invoke(app, [name, *_quick(name, rest)])
    assert result.exit_code == 0, result.output


def _quick(name: str, given: list[str]) -> list[str]:
    """The options with those that make the command quick."""
    more = [(option, value) for option, value in QUICK.get(name, {}).items() if option not in given]
    return [*given, *(word for pair in more for word in pair if word)]
