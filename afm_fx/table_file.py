"""One table as a safetensors file, written row after row.

A safetensors file is a JSON header and raw little-endian rows; its length is known before a row is. The header is
padded to a page, so that rows can be mapped where they lie, by this package and by runtimes that an ONNX file leads
here.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from afm_fx.checkpoints import DTYPES
from afm_fx.errors import UserError

PAGE = 4096
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def header_of(name: str, shape: tuple[int, int], dtype: torch.dtype) -> bytes:
    """The beginning of the file, up to the first row."""
    length = shape[0] * shape[1] * dtype.itemsize
    entry = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [0, length]}
    text = json.dumps({name: entry}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return struct.pack("<Q", len(text)) + text


class TableFile:
    """A table file that is being written.

    Args:
        path: where.
        name: of the table's parameter.
        shape: [rows, columns] that it will have.
        dtype: of its numbers.
        rows: rows that are in the file already and stay; what is behind them is written again.

    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, int], dtype: torch.dtype, *, rows: int = 0) -> None:
        self.path = path
        header = header_of(name, shape, dtype)
        row_bytes = shape[1] * dtype.itemsize
        try:
            if rows and (not path.is_file() or path.stat().st_size < len(header) + rows * row_bytes):
                raise UserError(f"'{path}' lacks rows that were written to it; delete its folder and start again")
            self._file = path.open("r+b" if rows else "w+b", buffering=0)
            self._file.write(header)
            self._file.truncate(len(header) + rows * row_bytes)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def append(self, rows: Tensor) -> None:
        """Writes rows behind the last."""
        view = memoryview(rows.contiguous().view(-1).view(torch.uint8).numpy().data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def close(self) -> None:
        """Closes the file; what was not synchronized may be lost with the machine, but not with the process."""
        self._file.close()

    def sync(self) -> None:
        """Returns once the rows are on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from error


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file whole, or leaves what was there, and returns once it is on the disk.

    Raises:
        UserError: nothing can be written there.
    """
    staged = path.with_name(f".{path.name}.new")
    try:
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def sync_folder(folder: Path) -> None:
    """Returns once the names in a folder are on the disk (where the system lets a folder be synchronized)."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"'{path}' cannot be written: {error.strerror or error}")
