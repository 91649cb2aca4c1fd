"""Parquet files, and folders of them, read a little at a time: memory does not grow with their rows.

A unit is a row group, the piece that Parquet can read for itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from afm_fx.columns import Array
from afm_fx.data_units import Unit
from afm_fx.errors import BatchError, FileFormatError
from afm_fx.rechunk import rechunked

_DAMAGE = (OSError, ValueError)
"""What pyarrow's own errors derive from."""


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file, read in batches of rows so that it need not fit in memory.

    Attributes:
        path: of the file, what messages call it too.
        names: of the columns, those of ``partition`` behind the file's own.
        rows: number of rows.
        group_rows: number of rows of every row group.
        bytes: size of the file.
        partition: columns with one value for the whole file, from the names of the folders that it lies in.
        metadata: the file's own (``pyarrow.parquet.FileMetaData``), so that it is parsed once.
    """

    path: Path
    names: tuple[str, ...]
    rows: int
    group_rows: tuple[int, ...]
    bytes: int
    partition: Mapping[str, Any] = field(default_factory=dict)
    metadata: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """See :class:`afm_fx.columns.DataFile`."""
        starts = np.cumsum([0, *self.group_rows]).tolist()
        return tuple(
            Unit(f"{self.path.name}, row group {group}", rows, starts[group])
            for group, rows in enumerate(self.group_rows)
        )

    @property
    def identity(self) -> str:
        """See :class:`afm_fx.columns.DataFile`."""
        return f"{self.bytes} bytes, row groups {list(self.group_rows)}"

    def chunks(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """See :class:`afm_fx.columns.DataFile`."""
        return self._read(names, size, range(len(self.group_rows)), 0)

    def unit_chunks(
        self, unit: int, names: Sequence[str], size: int, start: int, stop: int
    ) -> Iterator[dict[str, Array]]:
        """See :class:`afm_fx.columns.DataFile`."""
        left = stop - start
        for chunk in rechunked(self._read(names, size, [unit], self.units[unit].first_row), size, start):
            rows = len(next(iter(chunk.values())))
            yield chunk if rows <= left else {name: column[:left] for name, column in chunk.items()}
            left -= rows
            if left <= 0:
                return
        raise FileFormatError(f"'{self.path}', row group {unit} holds {left} rows fewer than the file says")

    def _read(self, names: Sequence[str], size: int, groups: Sequence[int], start: int) -> Iterator[dict[str, Array]]:
        stored = [name for name in names if name not in self.partition]
        # Buffered: else every column chunk of the row group is in memory at once.
        with pyarrow("parquet", self.path).ParquetFile(self.path, metadata=self.metadata, buffer_size=1 << 16) as file:
            batches = file.iter_batches(batch_size=size, row_groups=list(groups), columns=stored, use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except _DAMAGE as error:
                    raise FileFormatError(f"'{self.path}' is damaged after row {start}: {error}") from error
                if batch is None:
                    return
                yield {name: self._column(batch, name, start) for name in names}
                start += batch.num_rows

    def _column(self, batch: Any, name: str, start: int) -> Array:
        if name not in self.partition:
            return self._array(batch.column(name), name, start)
        value = self.partition[name]
        if value is None:
            raise BatchError(f"'{self.path}': the folder names no value of '{name}', which the model takes")
        return np.full(batch.num_rows, value)

    def _array(self, column: Any, name: str, start: int) -> Array:
        where = f"'{self.path}', column '{name}'"
        if column.null_count:
            row = start + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise BatchError(f"{where}: row {row} is missing (null); fill missing values before")
        if not hasattr(column, "value_lengths"):
            return np.asarray(column.to_numpy(zero_copy_only=False))
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if len(set(lengths.tolist())) > 1:
            row = start + int(np.flatnonzero(lengths != lengths[0])[0])
            raise BatchError(f"{where}: the lists differ in length (row {row}); pad them to one length")
        values = column.flatten()
        if values.null_count:
            raise BatchError(f"{where}: a list holds missing values (null); fill them before")
        flat = np.asarray(values.to_numpy(zero_copy_only=False))
        return flat.reshape(len(lengths), int(lengths[0]))


@dataclass(frozen=True)
class ParquetFolder:
    """A folder of Parquet files of one schema, in the order of their paths.

    Attributes:
        path: of the folder.
        names: of the columns, those from names of folders behind the others.
        files: one per file.
    """

    path: Path
    names: tuple[str, ...]
    files: tuple[ParquetFile, ...]

    @property
    def rows(self) -> int:
        """See :class:`afm_fx.columns.DataFile`."""
        return sum(file.rows for file in self.files)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """See :class:`afm_fx.columns.DataFile`."""
        return tuple(
            Unit(f"{file.path.relative_to(self.path)}, row group {group}", unit.rows, unit.first_row)
            for file in self.files
            for group, unit in enumerate(file.units)
        )

    @property
    def identity(self) -> str:
        """See :class:`afm_fx.columns.DataFile`."""
        return "; ".join(file.identity for file in self.files)

    def chunks(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """See :class:`afm_fx.columns.DataFile`."""
        return rechunked((chunk for file in self.files for chunk in file.chunks(names, size)), size)

    def unit_chunks(
        self, unit: int, names: Sequence[str], size: int, start: int, stop: int
    ) -> Iterator[dict[str, Array]]:
        """See :class:`afm_fx.columns.DataFile`."""
        file, group = self._places[unit]
        return file.unit_chunks(group, names, size, start, stop)

    @cached_property
    def _places(self) -> list[tuple[ParquetFile, int]]:
        return [(file, group) for file in self.files for group in range(len(file.group_rows))]


def open_parquet(path: Path) -> ParquetFile:
    """Opens a Parquet file.

    Raises:
        FileFormatError: it is damaged or something else.
    """
    parquet = pyarrow("parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            return _described(path, file.metadata, tuple(file.schema_arrow.names), {})
    except _DAMAGE as error:
        raise FileFormatError(f"'{path}' cannot be read: damaged or not Parquet ({error})") from error


def open_parquet_folder(path: Path) -> ParquetFolder:
    """Opens the Parquet files of a folder and of the folders in it; files named ``_...`` or ``....`` are left out.

    Raises:
        FileFormatError: there are none, or one is damaged or something else.
        BatchError: they differ in their columns.
    """
    dataset = pyarrow("dataset", path)
    try:
        found = dataset.dataset(path.resolve(), format="parquet", partitioning="hive")
        fragments = sorted(found.get_fragments(), key=lambda fragment: fragment.path)
    except _DAMAGE as error:
        raise FileFormatError(f"'{path}' cannot be read as a folder of Parquet files: {error}") from error
    if not fragments:
        raise FileFormatError(f"the folder '{path}' holds no Parquet files")
    files = []
    for fragment in fragments:
        file = Path(fragment.path)
        try:
            metadata, schema = fragment.metadata, fragment.physical_schema
        except _DAMAGE as error:
            raise FileFormatError(f"'{file}' cannot be read: damaged or not Parquet ({error})") from error
        partition = dataset.get_partition_keys(fragment.partition_expression)
        files.append(_described(file, metadata, tuple(schema.names), partition))
    names = tuple(found.schema.names)
    for each in files:
        missing = [name for name in names if name not in each.names]
        if missing:
            raise BatchError(f"'{each.path}' has no column '{missing[0]}', as other files of '{path}' have")
    return ParquetFolder(path.resolve(), names, tuple(files))


def _described(path: Path, metadata: Any, names: tuple[str, ...], partition: Mapping[str, Any]) -> ParquetFile:
    groups = tuple(int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups))
    own = tuple(name for name in names if name not in partition)
    size = path.stat().st_size
    return ParquetFile(path, (*own, *partition), int(metadata.num_rows), groups, size, partition, metadata)


def pyarrow(module: str, path: Path) -> Any:
    """A module of pyarrow.

    Raises:
        FileFormatError: pyarrow is not installed.
    """
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise FileFormatError(f"'{path}' needs pyarrow: pip install 'afm-fx[parquet]'") from error
