"""Shows what a benchmark measured, and writes it as a page for readers and as data for programs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from afm_fx.errors import OutputExistsError
from afm_fx.io import builtins_of, render_table, this_machine
from afm_fx.measure import Measurement

RESULTS = Path(__file__).resolve().parents[1] / "results"
LOCAL_OPTIONS = ("--checkpoint-dir", "--output-dir", "--work-dir")
"""Options that name folders of whoever measured and do not change the numbers: left out of the recorded command."""

DATA_OPTION = "--path"
WIDTH = 160
"""Columns of a printed table: an interval stays on one line."""


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        columns: the headings.
        rows: cells, shown with ``str``.
        left: how many leading columns are text; the others are numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: int = 1

    def markdown(self) -> str:
        """The table on the page."""
        rule = ["---" if position < self.left else "---:" for position in range(len(self.columns))]
        lines = [self.columns, rule, *self.rows]
        return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

    def text(self) -> str:
        """The table in the terminal."""
        return render_table("", self.columns, self.rows, left=self.left, width=WIDTH)


Part = str | Table
"""A paragraph, heading or list in Markdown, or a table."""


def markdown(parts: Sequence[Part]) -> str:
    """The parts of a page, in Markdown."""
    return "\n\n".join(part if isinstance(part, str) else part.markdown() for part in parts) + "\n"


def conditions(measurement: Measurement) -> str:
    """How something was timed; the machine is named at the top of the page."""
    return measurement.conditions().partition("\n")[2].replace("\n", "  \n")


@dataclass(frozen=True)
class ResultFiles:
    """The pair of files of one run.

    Attributes:
        page: path of the Markdown.
        data: path of the JSON.
    """

    page: Path
    data: Path

    def write(self, title: str, parts: Sequence[Part], content: Mapping[str, Any]) -> None:
        """Prints and writes what was measured; missing folders are made.

        Args:
            title: of the page; the command and the machine stand below it.
            parts: of the page.
            content: of the JSON, beside the command and the machine; dataclasses are written out.
        """
        command, machine = shown_command(sys.argv[1:]), this_machine()
        whole = [f"# {title}", f"`{command}`", machine.line(), *parts]
        typer.echo("\n\n".join(part if isinstance(part, str) else part.text().strip("\n") for part in whole))
        self.page.parent.mkdir(parents=True, exist_ok=True)
        self.page.write_text(markdown(whole), encoding="utf-8")
        document = {"command": command, "machine": machine, **content}
        self.data.write_text(json.dumps(document, indent=2, default=builtins_of) + "\n", encoding="utf-8")


def result_files(folder: Path, *names: str | None, force: bool) -> ResultFiles:
    """The files to write, checked before any work is done.

    Args:
        folder: where they go.
        names: joined by "-" they are the files' name; those that are None are left out.
        force: replace files that exist.

    Raises:
        OutputExistsError: one of them exists and ``force`` is not set.
    """
    stem = "-".join(name for name in names if name)
    files = ResultFiles(folder / f"{stem}.md", folder / f"{stem}.json")
    for path in (files.page, files.data):
        if path.exists() and not force:
            raise OutputExistsError(f"'{path}' exists already; use --force to replace it")
    return files


def shown_command(arguments: Sequence[str]) -> str:
    """The command to repeat a run, without what belongs to one machine: folders and ``--force``."""
    shown = ["python", "-m", "benchmarks"]
    left = iter(arguments)
    for argument in left:
        name, equals, _ = argument.partition("=")
        if name in (*LOCAL_OPTIONS, DATA_OPTION) and not equals:
            next(left, None)
        if name == DATA_OPTION:
            shown += [DATA_OPTION, "DIR"]
        elif name not in (*LOCAL_OPTIONS, "--force"):
            shown.append(argument)
    return shlex.join(shown)
