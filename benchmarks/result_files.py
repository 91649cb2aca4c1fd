"""Writes what a benchmark measured as markdown, for readers, and JSON, for programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_fx.errors import OutputExistsError

RESULTS = Path(__file__).resolve().parent / "results"
LOCAL_OPTIONS = ("--output-dir", "--work-dir")
"""Options that name folders of whoever measured: left out of the recorded command."""


@dataclass(frozen=True)
class ResultFiles:
    """The pair of files of one benchmark.

    Attributes:
        markdown: path of the text.
        json: path of the data.
    """

    markdown: Path
    json: Path

    def write(self, text: str, content: Any) -> None:
        """Writes both files; missing folders are made."""
        self.markdown.parent.mkdir(parents=True, exist_ok=True)
        self.markdown.write_text(text, encoding="utf-8")
        self.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def result_files(folder: Path, stem: str, *, force: bool) -> ResultFiles:
    """The files to write, checked before any work is done.

    Raises:
        OutputExistsError: one of them exists and ``force`` is not set.
    """
    files = ResultFiles(folder / f"{stem}.md", folder / f"{stem}.json")
    for path in (files.markdown, files.json):
        if path.exists() and not force:
            raise OutputExistsError(f"'{path}' exists already; use --force to replace it")
    return files


def shown_command(script: str, arguments: Sequence[str]) -> str:
    """The command to repeat a run, without options that name someone's folders and without ``--force``."""
    shown, skip = [], False
    for argument in arguments:
        name = argument.partition("=")[0]
        if skip:
            skip = False
        elif name in LOCAL_OPTIONS:
            skip = "=" not in argument
        elif argument != "--force":
            shown.append(argument)
    return shlex.join(["python", script, *shown])


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """A table in markdown; the first ``left`` columns are text, the others numbers."""
    rule = ["---" if position < left else "---:" for position in range(len(columns))]
    lines = [list(columns), rule, *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
