"""Folders that ``torch.distributed.checkpoint`` wrote, read without running what they say.

Their ``.metadata`` is a pickle, which could make its reader execute anything, and which sets attributes of whatever it
names. So no name in it leads to a class or function of torch or Python: it gets a :class:`_Record` that only holds what
the file says, or a :class:`_Maker` of plain values, and neither can be changed for the process. Each tensor in the
other files is what ``torch.save`` wrote; torch's reader with ``weights_only`` says, without reading the numbers, where
they lie, and from then on they are read in rows like those of any checkpoint.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from afm_fx.errors import FileFormatError, UnsafeFileError
from afm_fx.io.stored_tensor import Chunk, StoredTensor, beside

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DISTRIBUTED_METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint"


class _Record:
    """Stands for an object of a data class: whatever attributes the file gives it, and no behaviour.

    Pickle calls ``__setstate__`` where there is one instead of setting attributes: of a record it makes attributes, of
    a class (to which the file could ask to add some) a call without an instance, which fails.
    """

    offset = transform_descriptors = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise UnsafeFileError(f"it gives a '{type(self).__name__}' something else than attributes")
        self.__dict__.update(state)


class _Properties(_Record):
    """Stands for ``TensorProperties``, whose state is a tuple that begins with the number format."""

    dtype: Any = None

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0]


class _Maker:
    """Stands for a function, or for a class that is called: makes a plain value of its arguments."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFileError("it sets attributes of a function or class, which is not done")


_RECORDS = ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorStorageMetadata")  # fmt: skip
_PATHS = dict.fromkeys(
    ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"), _Maker(lambda *parts: parts)
)
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    f"{_MODULE}.metadata": {
        **{name: type(name, (_Record,), {}) for name in _RECORDS},
        "TensorProperties": _Properties,
        "_MEM_FORMAT_ENCODING": _Maker(lambda number: number),
    },
    f"{_MODULE}.filesystem": {"_StorageInfo": type("_StorageInfo", (_Record,), {})},
    "torch": {
        "Size": _Maker(lambda sizes=(): tuple(map(int, sizes))),
        **{str(each).removeprefix("torch."): each for each in vars(torch).values() if isinstance(each, torch.dtype)},
    },
    "torch.serialization": {"_get_layout": _Maker(str)},
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "collections": {"OrderedDict": _Maker(dict)},
}
"""What a ``.metadata`` may name, by module, and what it gets."""


class _KnownNames(pickle.Unpickler):
    """Unpickles the names of ``_KNOWN`` as what stands for them, and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        if name not in _KNOWN.get(module, ()):
            raise UnsafeFileError(f"it names '{module}.{name}', which no checkpoint needs and which is not run")
        return _KNOWN[module][name]


def open_distributed(folder: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a distributed checkpoint; what else it holds is left out.

    Raises:
        FileFormatError: it is damaged, or was written with another storage than torch's files.
        UnsafeFileError: its metadata names objects beside tensors, or files outside the folder.
    """
    path = folder / DISTRIBUTED_METADATA
    try:
        metadata = _KnownNames(io.BytesIO(path.read_bytes())).load()
        kinds = dict(metadata.state_dict_metadata)
        places = {(index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items()}
    except UnsafeFileError as error:
        raise UnsafeFileError(f"'{path}' is not opened: {error}") from error
    except Exception as error:  # a pickle that was made to mislead may raise anything
        raise FileFormatError(
            f"'{path}' is damaged, or no metadata of torch.distributed.checkpoint: {error}"
        ) from error
    tensors = {}
    for name, kind in kinds.items():
        if type(kind).__name__ != "TensorStorageMetadata":
            continue
        try:
            shape, dtype = tuple(map(int, kind.size)), kind.properties.dtype
            chunks = tuple(_chunk(path, name, dtype, box, places) for box in kind.chunks)
        except (AttributeError, TypeError, KeyError, ValueError, OverflowError) as error:
            raise FileFormatError(f"'{path}' is damaged, '{name}' is incomplete: {error!r}") from error
        if not isinstance(dtype, torch.dtype) or not _are_whole(chunks, shape):
            raise FileFormatError(f"'{path}' is damaged: the pieces of '{name}' are not the whole tensor")
        tensors[name] = StoredTensor(shape, dtype, chunks)
    return tensors


def _chunk(path: Path, name: str, dtype: torch.dtype, box: Any, places: Any) -> Chunk:
    start, shape = tuple(map(int, box.offsets)), tuple(map(int, box.sizes))
    info = places[(name, start)] if (name, start) in places else places[(name, ())]
    if info.transform_descriptors:
        raise FileFormatError(
            f"'{name}' was written through {info.transform_descriptors}, which cannot be read in rows"
        )
    file = beside(path, info.relative_path)
    with file.open("rb") as stream:
        part = _Part(stream, int(info.offset), int(info.length))
        try:
            with FakeTensorMode():  # shapes and places, no numbers
                tensor = torch.load(part, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
            offset = tensor.untyped_storage()._checkpoint_offset
        except Exception as error:  # torch raises many unrelated types
            raise FileFormatError(f"'{file}' is damaged, or holds no tensor '{name}' of torch.save: {error}") from error
    plain = tensor.is_contiguous() and tuple(tensor.shape) == shape and tensor.dtype == dtype
    if not plain or offset is None:
        raise FileFormatError(f"'{file}' holds '{name}' in another form than '{path}' says")
    begin = int(info.offset) + offset + tensor.storage_offset() * dtype.itemsize
    if begin + math.prod(shape) * dtype.itemsize > int(info.offset) + int(info.length):
        raise FileFormatError(f"'{file}' is damaged: '{name}' ends beyond its place")
    return Chunk(file, begin, start, shape)


class _Part(io.RawIOBase):
    """A part of a file as a file of its own, to read."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._file.seek(self._start + self._at)
        wanted = memoryview(buffer)
        content = self._file.read(min(wanted.nbytes, max(0, self._length - self._at)))
        wanted[: len(content)] = content  # RawIOBase asks for bytes
        self._at += len(content)
        return len(content)


def _are_whole(chunks: tuple[Chunk, ...], shape: tuple[int, ...]) -> bool:
    """Whether boxes cover a tensor and nothing twice."""
    inside = all(
        len(chunk.start) == len(chunk.shape) == len(shape)
        and all(a >= 0 and a + n <= size for a, n, size in zip(chunk.start, chunk.shape, shape, strict=True))
        for chunk in chunks
    )
    apart = all(
        any(a + n <= b or b + m <= a for a, n, b, m in zip(one.start, one.shape, other.start, other.shape, strict=True))
        for one, other in itertools.combinations(chunks, 2)
    )
    return inside and apart and sum(math.prod(chunk.shape) for chunk in chunks) == math.prod(shape)
