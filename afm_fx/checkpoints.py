"""Checkpoints on disk whose tensors are read in pieces: a table larger than memory is never loaded.

Three forms are read, and none of them is executed:

* one ``.safetensors`` file;
* several, with a ``*.safetensors.index.json`` that tells which tensor is in which;
* a folder that ``torch.distributed.checkpoint`` wrote (:mod:`afm_fx.distributed_checkpoint`).

Where the bytes of every tensor lie is known. Rows are read with plain reads into a block of one's own, so
that the resident memory of a process that streams a table is that of its blocks; :meth:`StoredTensor.mapped` maps a
tensor instead, for a model that reads few of its rows.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afm_fx.errors import FileFormatError, UnsafeFileError
from afm_fx.onnx_file import external_file

INDEX_SUFFIX = ".safetensors.index.json"
DISTRIBUTED_METADATA = ".metadata"
UNFINISHED = ".partial"
"""Stands in a folder of tables while it is written, and longer where that was interrupted."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


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


def open_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a checkpoint by name; none is read.

    Args:
        path: a ``.safetensors`` file, an index of several, or a folder that holds an index, a single such file, or a
            distributed checkpoint.

    Raises:
        FileFormatError: it is missing, damaged, or of another form.
        UnsafeFileError: it names files outside its folder, or objects beside tensors.
    """
    if path.is_dir():
        if (path / DISTRIBUTED_METADATA).exists():
            from afm_fx.distributed_checkpoint import open_distributed  # noqa: PLC0415 - it imports this module

            return open_distributed(path)
        found = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        if not found and (path / UNFINISHED).exists():
            raise FileFormatError(
                f"folder '{path}' is no checkpoint yet: its tables are being written, or were not all"
            )
        found = found or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise FileFormatError(
                f"folder '{path}' is no checkpoint: it holds {len(found)} safetensors files without an index, and no "
                f"'{DISTRIBUTED_METADATA}' of torch.distributed.checkpoint"
            )
        path = found[0]
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return _open_index(path)
    if path.is_file() and path.suffix != ".safetensors":
        raise FileFormatError(
            f"checkpoint '{path}' cannot be read in pieces: save it with safetensors.torch.save_file or "
            "torch.distributed.checkpoint"
        )
    return open_safetensors(path)


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of one safetensors file; see :func:`open_checkpoint`."""
    if not path.is_file():
        raise FileFormatError(f"there is no checkpoint '{path}'")
    try:
        with safe_open(str(path), framework="pt"):  # the library checks that shapes, places and the file's length agree
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"checkpoint '{path}' is damaged or not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise FileFormatError(f"checkpoint '{path}' holds '{name}' as {entry['dtype']}, which is not read")
        shape = tuple(entry["shape"])
        chunk = Chunk(path, 8 + length + entry["data_offsets"][0], (0,) * len(shape), shape)
        tensors[name] = StoredTensor(shape, DTYPES[entry["dtype"]], (chunk,))
    return tensors


def _open_index(path: Path) -> dict[str, StoredTensor]:
    try:
        weight_map = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"'{path}' is damaged, it is no index of safetensors files: {error!r}") from error
    if not all(isinstance(each, str) for pair in weight_map.items() for each in pair):
        raise FileFormatError(f"'{path}' is damaged: its weight_map is not of names to files")
    opened = {file: open_safetensors(beside(path, file)) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in opened[file]:
            raise FileFormatError(f"'{path}' says that '{name}' is in '{file}', but it is not")
    return {name: opened[file][name] for name, file in weight_map.items()}


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
