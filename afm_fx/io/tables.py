"""Plain-text tables, drawn by ``rich``, for every ``.table()`` of the public results."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table

WIDTH = 120
"""Columns of text that goes to a file, a pipe or a notebook."""


def text_width() -> int:
    """Columns to draw for: the terminal's where standard output is one, else 120."""
    if sys.stdout is None or not sys.stdout.isatty():
        return WIDTH
    return shutil.get_terminal_size((WIDTH, 24)).columns


def render_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: int = 1,
    text: Collection[str] = (),
    width: int | None = None,
) -> str:
    """Draws a table as text.

    Args:
        title: line above the table, may be empty.
        rows: cells, shown with ``str``.
        left: how many leading columns are text (left-aligned); the others are numbers (right-aligned).
        text: headings of further columns that are text.
        width: columns of the drawing; :func:`text_width` where left out.
    """
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        is_text = position < left or column in text
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return _drawn([table], width)


def render_sections(sections: Sequence[tuple[str, Sequence[Sequence[str]]]], *, width: int | None = None) -> str:
    """Draws indented rows under headings, the columns of all sections aligned; the last column wraps.

    A section is a heading and its rows; all rows have as many cells.
    """
    cells = [row for _, rows in sections for row in rows]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*cells, strict=True)]
    parts: list[RenderableType] = []
    for heading, rows in sections:
        grid = Table.grid(padding=(0, 3, 0, 0))
        for column_width in widths[:-1]:
            grid.add_column(min_width=column_width, overflow="fold")
        grid.add_column(overflow="fold")
        for row in rows:
            grid.add_row(*row)
        parts += ["", heading, Padding(grid, (0, 0, 0, 2))]
    return _drawn(parts, width)


def _drawn(parts: Sequence[RenderableType], width: int | None) -> str:
    sink = io.StringIO()
    # Cells are text as it stands: a list in a source line is no markup, ":1:" no emoji.
    console = Console(
        file=sink, width=width or text_width(), color_system=None, markup=False, emoji=False, highlight=False
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines())
