"""Copies tables into one packed table with as little memory as whole tables can be let go in.

A tensor is freed as a whole. When the last row of a table is copied, both the table and its copy are there, so with
groups of ``g_1, ..., g_k`` bytes (the tables side by side in one row) no order of copies needs less than
``sum g_i + max g_i``. This is reached when the packed table's memory is only touched where it is written and every
table is let go once it is copied. The largest go first: what an allocator keeps of small tables that were let go then
comes after the peak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from passes.table_layout import RowGroup

ROWS_PER_BLOCK = 65_536


@torch.no_grad()
def fill_table(
    packed: Tensor, groups: Sequence[RowGroup], starts: Mapping[int, int], *, free_sources: bool = False
) -> None:
    """Writes every entry of a packed table; what no table fills becomes zero.

    Args:
        packed: ``[rows, width]``, overwritten; fresh from ``torch.empty`` it has no memory before it is written.
        groups: the tables in it.
        starts: first row of every group, by its position.
        free_sources: let every table become a view of the packed one as soon as it is copied.
    """
    _clear_between(packed, groups, starts)
    for position in sorted(starts, key=lambda each: groups[each].rows * groups[each].width, reverse=True):
        group = groups[position]
        rows = packed[starts[position] : starts[position] + group.rows]
        column = 0
        for table in group.tables.values():
            region = rows[: table.shape[0], column : column + table.shape[1]]
            for row in range(0, table.shape[0], ROWS_PER_BLOCK):
                region[row : row + ROWS_PER_BLOCK] = table[row : row + ROWS_PER_BLOCK]
            if free_sources:
                table.data = region
            column += table.shape[1]
        rows[:, column:] = 0


def _clear_between(packed: Tensor, groups: Sequence[RowGroup], starts: Mapping[int, int]) -> None:
    """Zeroes the rows that belong to no group."""
    end = 0
    for position, start in sorted(starts.items(), key=lambda each: each[1]):
        packed[end:start] = 0
        end = start + groups[position].rows
    packed[end:] = 0
