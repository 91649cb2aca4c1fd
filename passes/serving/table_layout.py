"""Decides which tables become one: rows side by side where an id reads several tables, tables below one another else.

Tables that are read by the same ids become one *row group*: their features are columns of one row, the narrowest first,
so that the linear term's weight has the same place whatever the width of the code beside it. Row groups below one
another, each padded to the width of the widest, are one *packed table*, read by one gather. Padding costs memory and
bytes per row, another gather costs a call; groups of neighbouring widths are joined while that pays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passes.graph import IdColumn, TracedLookup
from passes.serving.serving_cost import BYTES_PER_US, LAUNCH_US

ROWS_PER_BLOCK = 65_536
MOST_PADDING = 0.125
"""Padding may add this share of the tables' bytes,"""
FREE_PADDING_BYTES = 65_536
"""or this many bytes."""
TYPICAL_ROWS = 64
"""Batch size at which bytes of padding are weighed against a gather."""


@dataclass
class RowGroup:
    """Tables by name that the same ids read, their features side by side."""

    tables: dict[str, Tensor] = field(default_factory=dict)
    ids: tuple[IdColumn, ...] = ()
    lookups: list[TracedLookup] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Features of one row."""
        return sum(table.shape[1] for table in self.tables.values())

    @property
    def rows(self) -> int:
        """Rows of every table, which are as many in all."""
        return next(iter(self.tables.values())).shape[0]

    def column_of(self, name: str) -> int:
        """First feature of a table within the row."""
        names = list(self.tables)
        return sum(self.tables[each].shape[1] for each in names[: names.index(name)])


def row_groups(lookups: Sequence[TracedLookup]) -> list[RowGroup]:
    """Tables by the set of ids that read them, in the order of the lookups."""
    readers: dict[str, set[IdColumn]] = {}
    for lookup in lookups:
        readers.setdefault(lookup.name, set()).update(lookup.ids)
    groups: dict[tuple[object, ...], RowGroup] = {}
    for lookup in lookups:
        table = lookup.table
        key = (frozenset(readers[lookup.name]), table.shape[0], table.dtype, table.device)
        group = groups.setdefault(key, RowGroup())
        group.tables[lookup.name] = lookup.table
        group.ids = tuple(dict.fromkeys((*group.ids, *lookup.ids)))
        group.lookups.append(lookup)
    _order_columns(list(groups.values()))
    return list(groups.values())


def _order_columns(groups: Sequence[RowGroup]) -> None:
    """The narrowest table first; of equally wide ones that which stands in the graph where narrow ones do elsewhere."""
    items = [list(group.tables.items()) for group in groups]
    pairs = [(min(each, key=_width), max(each, key=_width)) for each in items]
    order = {name: position for group in groups for position, name in enumerate(group.tables)}
    different = [(low, high) for low, high in pairs if _width(low) != _width(high)]
    later = sum(1 if order[low[0]] > order[high[0]] else -1 for low, high in different) > 0
    for group, tables in zip(groups, items, strict=True):
        group.tables = dict(sorted(reversed(tables) if later else tables, key=_width))


def _width(named: tuple[str, Tensor]) -> int:
    return named[1].shape[1]


def packed_tables(groups: Sequence[RowGroup]) -> Iterator[list[RowGroup]]:
    """Row groups that become one table each, of which there are at least two lookups."""
    kinds: dict[tuple[object, ...], list[RowGroup]] = {}
    for group in groups:
        first = next(iter(group.tables.values()))
        kinds.setdefault((first.dtype, first.device), []).append(group)
    for alike in kinds.values():
        for joined in _join_widths(alike):
            if sum(len(group.lookups) for group in joined) > 1:
                yield joined


def _join_widths(groups: Sequence[RowGroup]) -> list[list[RowGroup]]:
    """Groups by width; classes of neighbouring widths joined from the cheapest on while that pays."""
    by_width: dict[int, list[RowGroup]] = {}
    for group in groups:
        by_width.setdefault(group.width, []).append(group)
    classes = [by_width[width] for width in sorted(by_width)]
    size = next(iter(groups[0].tables.values())).element_size()
    total = sum(group.rows * group.width for group in groups) * size
    allowance = max(FREE_PADDING_BYTES, MOST_PADDING * total)
    while len(classes) > 1:
        costs = [_padding_bytes(low, high, size) for low, high in itertools.pairwise(classes)]
        order = sorted(range(len(costs)), key=lambda position: costs[position])
        position = next((each for each in order if costs[each] <= allowance and _pays(classes, each, size)), None)
        if position is None:
            break
        allowance -= costs[position]
        classes[position : position + 2] = [[*classes[position], *classes[position + 1]]]
    return [[group for group in groups if any(group is each for each in joined)] for joined in classes]


def widest(groups: Sequence[RowGroup]) -> int:
    """The width that all are padded to."""
    return max(group.width for group in groups)


def _padding_bytes(low: Sequence[RowGroup], high: Sequence[RowGroup], size: int) -> int:
    return sum(group.rows for group in low) * (widest(high) - widest(low)) * size


def _pays(classes: Sequence[Sequence[RowGroup]], position: int, size: int) -> bool:
    low, high = classes[position], classes[position + 1]
    read = sum(len(group.ids) for group in low) * (widest(high) - widest(low)) * size
    return TYPICAL_ROWS * read / BYTES_PER_US <= 4 * LAUNCH_US


@dataclass(frozen=True)
class TableLayout:
    """Row groups below one another in one table, each padded to the width of the widest.

    A tensor is freed as a whole. When the last row of a table is copied, both the table and its copy are there, so with
    groups of ``g_1, ..., g_k`` bytes no order of copies needs less than ``sum g_i + max g_i``. :meth:`fill` reaches
    this: the packed table's memory is only touched where it is written, and every table is let go once it is copied.
    The largest go first: what an allocator keeps of small tables that were let go then comes after the peak.
    """

    groups: tuple[RowGroup, ...]

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(name for group in self.groups for name in group.tables)

    @property
    def starts(self) -> list[int]:
        """First row of every group, and the number of rows."""
        return list(itertools.accumulate((group.rows for group in self.groups), initial=0))

    @torch.no_grad()
    def fill(self, packed: Tensor, *, free_sources: bool = False) -> None:
        """Writes every entry of the packed table; what no table fills becomes zero.

        Args:
            packed: ``[rows, width]``, overwritten; fresh from ``torch.empty`` it has no memory before it is written.
            free_sources: let every table become a view of the packed one as soon as it is copied.
        """
        placed = sorted(zip(self.starts, self.groups, strict=False), key=lambda each: each[1].rows * each[1].width)
        for start, group in reversed(placed):
            rows, column = packed[start : start + group.rows], 0
            for table in group.tables.values():
                region = rows[:, column : column + table.shape[1]]
                for row in range(0, table.shape[0], ROWS_PER_BLOCK):
                    region[row : row + ROWS_PER_BLOCK] = table[row : row + ROWS_PER_BLOCK]
                if free_sources:
                    table.data = region
                column += table.shape[1]
            rows[:, column:] = 0
