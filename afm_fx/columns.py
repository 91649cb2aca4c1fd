"""What every kind of data file gives: named columns, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from afm_fx.data_units import Unit

Array = NDArray[Any]


class DataFile(Protocol):
    """Named columns of equal length. A column is an array whose axis 0 counts rows."""

    @property
    def path(self) -> Path:
        """Where the data come from."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in the order of the file."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def units(self) -> Sequence[Unit]:
        """The pieces that processes may share, in the order of the rows."""
        ...

    @property
    def identity(self) -> str:
        """What tells the data from others: shapes or sizes."""
        ...

    def chunks(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """Yields the named columns, ``size`` rows at a time (fewer in some chunks of one file).

        Raises:
            BatchError: a column holds nothing that an array can (text, missing values, lists of different lengths).
            FileFormatError: the file is damaged.
        """
        ...

    def unit_chunks(
        self, unit: int, names: Sequence[str], size: int, start: int, stop: int
    ) -> Iterator[dict[str, Array]]:
        """Yields the rows ``start`` to ``stop`` of a unit, ``size`` rows at a time, fewer only in the last chunk.

        Raises:
            BatchError: as :meth:`chunks`.
            FileFormatError: the file is damaged, or holds fewer rows than it said.
        """
        ...
