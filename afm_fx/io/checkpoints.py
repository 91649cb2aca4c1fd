"""Checkpoints on disk whose tensors are read in pieces: a table larger than memory is never loaded.

Three forms are read, and none of them is executed:

* one ``.safetensors`` file;
* several, with a ``*.safetensors.index.json`` that tells which tensor is in which;
* a folder that ``torch.distributed.checkpoint`` wrote (:mod:`afm_fx.io.distributed_checkpoint`).

Where the bytes of every tensor lie is known; :mod:`afm_fx.io.stored_tensor` reads them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from afm_fx.errors import FileFormatError
from afm_fx.io.distributed_checkpoint import DISTRIBUTED_METADATA, open_distributed
from afm_fx.io.stored_tensor import Chunk, StoredTensor, beside

INDEX_SUFFIX = ".safetensors.index.json"
UNFINISHED = ".partial"
"""Stands in a folder of tables while it is written, and longer where that was interrupted."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


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


def checkpoint_files(path: Path) -> set[Path]:
    """The files that decide about a checkpoint's tensors, its index included; see :func:`open_checkpoint`."""
    files = {chunk.path for tensor in open_checkpoint(path).values() for chunk in tensor.chunks}
    if path.is_dir():
        found = [path / DISTRIBUTED_METADATA, *path.glob(f"*{INDEX_SUFFIX}")]
        return files | {each for each in found if each.exists()}
    return files | {path}


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
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"'{path}' is damaged, it is no index of safetensors files: {error!r}") from error
    if not all(isinstance(each, str) for pair in weight_map.items() for each in pair):
        raise FileFormatError(f"'{path}' is damaged: its weight_map is not of names to files")
    opened = {file: open_safetensors(beside(path, file)) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in opened[file]:
            raise FileFormatError(f"'{path}' says that '{name}' is in '{file}', but it is not")
    return {name: opened[file][name] for name, file in weight_map.items()}
