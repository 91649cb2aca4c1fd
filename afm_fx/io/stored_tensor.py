"""A tensor on disk, known by where its bytes lie, whatever file holds them.

Rows are read with plain reads into a block of one's own, so that the resident memory of a process that streams a table
is that of its blocks; :meth:`StoredTensor.mapped` maps a tensor instead, for a model that reads few of its rows.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from afm_fx.errors import FileFormatError, UnsafeFileError
from afm_fx.io.external_file import external_file


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor that lies in one piece, row after row, in a file, ``offset`` bytes from its beginning.

    Attributes:
        start: its first index along every axis of the tensor.
    """

    path: Path
    offset: int
    start: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, made of chunks that cover it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (not included) as a new tensor, [stop - start, ...].

        Raises:
            FileFormatError: a file ended before them.
        """
        block = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        for chunk in self.chunks:
            first, last = max(start, chunk.start[0]), min(stop, chunk.start[0] + chunk.shape[0])
            if first >= last or not math.prod(chunk.shape):
                continue
            row_bytes = math.prod(chunk.shape[1:]) * self.dtype.itemsize
            offset = chunk.offset + (first - chunk.start[0]) * row_bytes
            whole = chunk.shape[1:] == self.shape[1:]
            into = block[first - start : last - start]
            part = into if whole else torch.empty((last - first, *chunk.shape[1:]), dtype=self.dtype)
            _read_into(part, chunk.path, offset)
            if not whole:
                columns = zip(chunk.start[1:], chunk.shape[1:], strict=True)
                into[(slice(None), *(slice(begin, begin + length) for begin, length in columns))] = part
        return block

    def tensor(self) -> Tensor:
        """The whole tensor, in memory."""
        if self.shape:
            return self.rows(0, self.shape[0])
        value = torch.empty((1,), dtype=self.dtype)
        if self.chunks:
            _read_into(value, self.chunks[0].path, self.chunks[0].offset)
        return value.reshape(())

    def mapped(self) -> Tensor:
        """The tensor as a read-only view of its file: writing to it ends the process.

        Only a tensor that lies in one piece, aligned to its numbers, can be mapped; another one is loaded.
        """
        if len(self.chunks) != 1 or not self.bytes or self.chunks[0].offset % self.dtype.itemsize:
            return self.tensor()
        chunk = self.chunks[0]
        with chunk.path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(pages, dtype=self.dtype, count=math.prod(self.shape), offset=chunk.offset)
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class Snapshot:
    """The files of a checkpoint as they were at one moment.

    A file that is replaced by another is another file to the system, and one that is written to has another time of
    change, which (unlike the time of modification) nobody can set back. So neither equal size nor equal time misleads.
    """

    states: Mapping[Path, tuple[int, ...]]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Snapshot:
        """Takes it.

        Raises:
            FileFormatError: a file is gone.
        """
        try:
            return cls({path: _state(path) for path in sorted(set(paths))})
        except OSError as error:
            raise FileFormatError(f"a file of the checkpoint cannot be read: {error}") from error

    def check(self) -> None:
        """Refuses what was read since, where a file is another one by now.

        Raises:
            FileFormatError: naming the file.
        """
        now = Snapshot.of(self.states)
        for path, state in self.states.items():
            if now.states[path] != state:
                raise FileFormatError(
                    f"'{path}' was replaced or written to while it was read, so that what was read may be of two "
                    "models; start again"
                )


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def beside(path: Path, name: str) -> Path:
    """The file of a name that a checkpoint's own file gives, relative to its folder.

    Raises:
        UnsafeFileError: it leads out of the folder.
        FileFormatError: there is no such file.
    """
    try:
        return external_file(path.parent.resolve(), name)
    except (UnsafeFileError, FileFormatError) as error:
        raise type(error)(f"'{path}' is not opened: one of its tensors {error}") from error


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)


def _read_into(tensor: Tensor, path: Path, offset: int) -> None:
    """Fills a contiguous tensor from a file."""
    if not tensor.numel():
        return
    view = bytes_of(tensor)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while view:
                count = file.readinto(view)
                if not count:
                    raise FileFormatError(f"'{path}' ends {len(view):,} bytes before a tensor does")
                view = view[count:]
    except OSError as error:
        raise FileFormatError(f"'{path}' cannot be read: {error}") from error
