"""Plain-text tables, drawn by ``rich``, for every ``.table()`` of the public results."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

MAX_WIDTH = 160


def render_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """Draws a table as text.

    Args:
        title: line above the table, may be empty.
        columns: headings.
        rows: cells, shown with ``str``.
        left: how many leading columns are text (left-aligned); the others are numbers (right-aligned).
    """
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    sink = io.StringIO()
    Console(file=sink, width=MAX_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines())
