"""Opens a user's data: ``.npz``, ``.npy`` and ``.parquet`` files and folders of the last, as named columns.

Nothing here executes what a file holds: NumPy files are read without pickle.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afm_fx.data.parquet_files import Array, Columns, ParquetData, open_parquet
from afm_fx.errors import BatchError, FileFormatError


@dataclass(frozen=True)
class ArrayFile:
    """Named arrays of equal length in memory, or mapped from a ``.npy`` file; axis 0 counts rows."""

    path: Path
    arrays: Mapping[str, Array]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns in the order of the file."""
        return tuple(self.arrays)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.arrays.values())))

    def chunks(self, names: Sequence[str], size: int, start: int = 0, stop: int | None = None) -> Iterator[Columns]:
        """Yields the named columns of the rows ``start`` to ``stop``, ``size`` at a time, fewer only in the last chunk.

        Raises:
            BatchError: a column holds nothing that an array can (text, missing values, lists of different lengths).
            FileFormatError: the file is damaged.
        """
        end = self.rows if stop is None else stop
        for begin in range(start, end, size):
            yield {name: self.arrays[name][begin : min(begin + size, end)] for name in names}


DataFile = ArrayFile | ParquetData
"""Named columns: a path, names, a number of rows, and chunks of some columns."""


def open_data(path: Path) -> DataFile:
    """Opens a data file by its ending, or a folder of Parquet files.

    Args:
        path: a file, or a folder of Parquet files, in folders of it too.

    Raises:
        FileFormatError: there is no such file, it is damaged, or of another kind.
        BatchError: its columns differ in length or it holds no rows.
    """
    readers: dict[str, Callable[[Path], DataFile]] = {
        ".npz": _open_arrays, ".npy": _open_arrays, ".parquet": open_parquet,
    }  # fmt: skip
    reader = open_parquet if path.is_dir() else readers.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(f"'{path}': data files end in {', '.join(readers)}, not '{path.suffix}'")
    if not path.exists():
        raise FileFormatError(f"there is no data file '{path}'")
    if not path.is_dir() and not path.is_file():  # reading a pipe would wait for whoever writes to it
        raise FileFormatError(f"'{path}' is no plain file; write the rows to one")
    file = reader(path)
    if file.rows == 0:
        raise BatchError(f"'{path}' holds no rows")
    return file


def _open_arrays(path: Path) -> ArrayFile:
    with _readable(f"'{path}'"):
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    arrays: dict[str, Array] = {path.stem: loaded}
    if not isinstance(loaded, np.ndarray):
        with loaded:
            arrays = {}
            for name in loaded.files:
                with _readable(f"'{path}', array '{name}'"):
                    arrays[name] = np.asarray(loaded[name])
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


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turns what NumPy says about a bad file into a typed error."""
    try:
        yield
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        text = " ".join(str(error).split())[:200]
        reason = f"damaged or of another kind ({text or type(error).__name__})"
        if "pickle" in text.lower():
            reason = "it is damaged, or holds Python objects, which are not read for safety; save plain numbers"
        raise FileFormatError(f"{what} cannot be read: {reason}") from error
