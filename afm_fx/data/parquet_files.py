"""Parquet files, and folders of them, read a little at a time: memory does not grow with their rows."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afm_fx.errors import BatchError, FileFormatError

_DAMAGE = (OSError, ValueError)
"""What pyarrow's own errors derive from."""

Array = NDArray[Any]
Columns = dict[str, Array]


@dataclass(frozen=True)
class ParquetData:
    """Parquet files of one schema, in the order of their paths."""

    path: Path
    names: tuple[str, ...]
    files: tuple[_File, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(file.rows for file in self.files)

    def chunks(self, names: Sequence[str], size: int, start: int = 0, stop: int | None = None) -> Iterator[Columns]:
        """See :meth:`afm_fx.data.data_files.ArrayFile.chunks`."""
        return _rechunked(self._between(names, size, start, self.rows if stop is None else stop), size)

    def _between(self, names: Sequence[str], size: int, start: int, stop: int) -> Iterator[Columns]:
        for file in self.files:
            if start < file.rows and stop > 0:
                yield from file.between(names, size, max(start, 0), min(stop, file.rows))
            start, stop = start - file.rows, stop - file.rows


@dataclass(frozen=True)
class _File:
    """One file.

    Attributes:
        metadata: the file's own (``pyarrow.parquet.FileMetaData``), so that it is parsed once.
    """

    path: Path
    metadata: Any

    @property
    def rows(self) -> int:
        return int(self.metadata.num_rows)

    def between(self, names: Sequence[str], size: int, start: int, stop: int) -> Iterator[Columns]:
        """The rows ``start`` to ``stop``, at most ``size`` at a time; of row groups without any nothing is read."""
        lengths = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
        ends = np.cumsum(lengths)
        groups = [group for group, end in enumerate(ends) if end > start and end - lengths[group] < stop]
        if not groups:
            return
        row = int(ends[groups[0]]) - lengths[groups[0]]
        # Buffered: else every column chunk of the row group is in memory at once.
        with pyarrow("parquet", self.path).ParquetFile(self.path, metadata=self.metadata, buffer_size=1 << 16) as file:
            batches = file.iter_batches(batch_size=size, row_groups=groups, columns=list(names), use_threads=False)
            while row < stop:
                try:
                    batch = next(batches)
                except StopIteration:
                    raise FileFormatError(f"'{self.path}' is damaged: it ends after row {row}") from None
                except _DAMAGE as error:
                    raise FileFormatError(f"'{self.path}' is damaged after row {row}: {error}") from error
                first, last = max(start - row, 0), min(stop - row, batch.num_rows)
                if first < last:
                    wanted = batch.slice(first, last - first)
                    yield {name: self._array(wanted.column(name), name, row + first) for name in names}
                row += batch.num_rows

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


def open_parquet(path: Path) -> ParquetData:
    """Opens a Parquet file, or those of a folder and of the folders in it; names ``_...`` and ``....`` are left out.

    Raises:
        FileFormatError: there are none, or one is damaged or something else.
        BatchError: they differ in their columns.
    """
    folder = path.is_dir()
    dataset = pyarrow("dataset", path)
    try:
        found = dataset.dataset(path.resolve(), format="parquet")
        fragments = sorted(found.get_fragments(), key=lambda fragment: fragment.path)
    except _DAMAGE as error:
        raise FileFormatError(f"'{path}' cannot be read: damaged or not Parquet ({error})") from error
    if not fragments:
        raise FileFormatError(f"the folder '{path}' holds no Parquet files")
    names, files = tuple(found.schema.names), []
    for fragment in fragments:
        file = Path(fragment.path) if folder else path
        try:
            metadata, stored = fragment.metadata, fragment.physical_schema.names
        except _DAMAGE as error:
            raise FileFormatError(f"'{file}' cannot be read: damaged or not Parquet ({error})") from error
        missing = [name for name in names if name not in stored]
        if missing:
            raise BatchError(f"'{file}' has no column '{missing[0]}', as other files of '{path}' have")
        files.append(_File(file, metadata))
    return ParquetData(path.resolve() if folder else path, names, tuple(files))


def pyarrow(module: str, path: Path) -> Any:
    """A module of pyarrow.

    Raises:
        FileFormatError: pyarrow is not installed.
    """
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise FileFormatError(f"'{path}' needs pyarrow: pip install 'afm-fx[parquet]'") from error


def _rechunked(chunks: Iterable[Columns], size: int) -> Iterator[Columns]:
    """The same rows, ``size`` at a time, fewer only in the last chunk, from chunks of at most ``size`` rows."""
    held: list[Columns] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += len(next(iter(chunk.values())))
        if count >= size:
            whole = _joined(held)
            yield {name: column[:size] for name, column in whole.items()}
            count -= size
            held = [{name: column[size:] for name, column in whole.items()}] if count else []
    if count:
        yield _joined(held)


def _joined(chunks: list[Columns]) -> Columns:
    if len(chunks) == 1:
        return chunks[0]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
