"""Data in units: the pieces that processes share, and in which it is written down what was seen.

A row's place is its unit and its number in it, whoever reads it: that is what lets any number of processes share the
rows, and others go on where some stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from afm_fx.inputs import Inputs


@dataclass(frozen=True)
class Unit:
    """One unit of a data set.

    Attributes:
        name: what messages call it; the same wherever the data lie.
        rows: how many rows it holds.
        first_row: number of its first row in its file.
    """

    name: str
    rows: int
    first_row: int = 0


@runtime_checkable
class UnitBatches(Protocol):
    """Batches that can be read unit by unit, from any row that a batch begins at.

    :class:`afm_fx.file_batches.FileBatches` is one. Anything with these members is: rows in a fixed order, the same in
    every process.
    """

    @property
    def batch_size(self) -> int:
        """Rows a batch; the last batch of a unit may hold fewer."""
        ...

    @property
    def units(self) -> Sequence[Unit]:
        """The units, in the order of the data."""
        ...

    @property
    def identity(self) -> str:
        """What tells these data from others, for example sizes of files and the columns that are read."""
        ...

    def unit_batches(self, unit: int, start: int, stop: int) -> Iterator[Inputs]:
        """Yields the batches of the rows ``start`` to ``stop`` of a unit, cut from ``start`` on."""
        ...


def cut(rows: int, size: int) -> list[tuple[int, int]]:
    """Where pieces of ``size`` rows begin and end."""
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]
