"""Reads a user's data files: ``.npz``, ``.npy`` and ``.parquet``, as named columns in chunks of rows.

Nothing here executes what a file holds: NumPy files are read without pickle.
"""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from afm_fx.errors import BatchError, FileFormatError

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

    def chunks(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """Yields the named columns, ``size`` rows at a time (fewer in some chunks).

        Raises:
            BatchError: a column holds nothing that an array can (text, missing values, lists of different lengths).
            FileFormatError: the file is damaged.
        """
        ...


def open_data(path: Path) -> DataFile:
    """Opens a data file by its ending.

    Raises:
        FileFormatError: there is no such file, it is damaged, or of another kind.
        BatchError: its columns differ in length or it holds no rows.
    """
    readers = {".npz": _open_npz, ".npy": _open_npy, ".parquet": _open_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(f"'{path}': data files end in {', '.join(readers)}, not '{path.suffix}'")
    if not path.is_file():
        raise FileFormatError(f"there is no data file '{path}'")
    file = reader(path)
    if file.rows == 0:
        raise BatchError(f"'{path}' holds no rows")
    return file


@dataclass(frozen=True)
class ArrayFile:
    """Arrays in memory, or mapped from a ``.npy`` file."""

    path: Path
    arrays: Mapping[str, Array]

    @property
    def names(self) -> tuple[str, ...]:
        """See :class:`DataFile`."""
        return tuple(self.arrays)

    @property
    def rows(self) -> int:
        """See :class:`DataFile`."""
        return len(next(iter(self.arrays.values())))

    def chunks(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """See :class:`DataFile`."""
        for start in range(0, self.rows, size):
            yield {name: self.arrays[name][start : start + size] for name in names}


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file, read in batches of rows so that it need not fit in memory."""

    path: Path
    names: tuple[str, ...]
    rows: int

    def chunks(self, names: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
        """See :class:`DataFile`."""
        parquet = _parquet_module(self.path)
        start = 0
        with parquet.ParquetFile(self.path) as file:
            batches = file.iter_batches(batch_size=size, columns=list(names))
            while True:
                try:
                    batch = next(batches, None)
                except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
                    raise FileFormatError(f"'{self.path}' is damaged after row {start}: {error}") from error
                if batch is None:
                    return
                yield {name: self._array(batch.column(name), name, start) for name in names}
                start += batch.num_rows

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


def _open_npz(path: Path) -> DataFile:
    loaded = _load_numpy(path)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise FileFormatError(f"'{path}' is not an .npz archive")
    with loaded:
        arrays = {name: _member(loaded, name, path) for name in loaded.files}
    if not arrays:
        raise FileFormatError(f"'{path}' holds no arrays")
    for name, array in arrays.items():
        if array.ndim == 0:
            raise BatchError(f"'{path}', array '{name}' is a single number; axis 0 must count rows")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BatchError(f"'{path}': the arrays differ in their number of rows: {shown}")
    return ArrayFile(path, arrays)


def _open_npy(path: Path) -> DataFile:
    loaded = _load_numpy(path, mapped=True)
    if not isinstance(loaded, np.ndarray):
        raise FileFormatError(f"'{path}' is not an .npy array")
    if loaded.ndim == 0:
        raise BatchError(f"'{path}' is a single number; axis 0 must count rows")
    return ArrayFile(path, {path.stem: loaded})


def _load_numpy(path: Path, *, mapped: bool = False) -> Any:
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"'{path}' cannot be read: {_numpy_reason(error)}") from error


def _member(archive: Any, name: str, path: Path) -> Array:
    try:
        return np.asarray(archive[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FileFormatError(f"'{path}', array '{name}' cannot be read: {_numpy_reason(error)}") from error


def _numpy_reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    if "pickle" in text.lower():
        return "it is damaged, or holds Python objects, which are not read for safety; save plain numbers"
    return f"damaged or of another kind ({text or type(error).__name__})"


def _open_parquet(path: Path) -> DataFile:
    parquet = _parquet_module(path)
    try:
        with parquet.ParquetFile(path) as file:
            return ParquetFile(path, tuple(file.schema_arrow.names), int(file.metadata.num_rows))
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise FileFormatError(f"'{path}' cannot be read: damaged or not Parquet ({error})") from error


def _parquet_module(path: Path) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise FileFormatError(f"'{path}' needs pyarrow: pip install 'afm-fx[parquet]'") from error
