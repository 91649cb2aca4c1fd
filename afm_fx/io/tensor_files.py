"""Files of named tensors (safetensors: no pickle), with a JSON header of what they are."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from afm_fx.errors import FileFormatError
from afm_fx.io.checkpoints import DTYPES
from afm_fx.io.output_directory import staged_file
from afm_fx.io.stored_tensor import bytes_of

HEADER = "afm_fx"
PAGE = 4096

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_tensors(
    path: str | os.PathLike[str],
    kind: str,
    version: int,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    force: bool,
) -> None:
    """Writes tensors and a header under a kind and version.

    Raises:
        OutputExistsError: the path is a directory, or exists and ``force`` is not set.
    """
    document = json.dumps({"kind": kind, "version": version, **header}, sort_keys=True)
    with staged_file(Path(path), force=force) as staged:  # save_file would let nobody but the owner read it
        staged.write_bytes(serialized(tensors, {HEADER: document}))


def serialized(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of tensors, which may be views of one memory."""
    return save(
        {name: each.detach().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}, metadata
    )


def write_table(path: Path, name: str, shape: tuple[int, int], dtype: torch.dtype, blocks: Iterable[Tensor]) -> None:
    """Writes a safetensors file of one table, of which no more than a block of rows is in memory.

    Such a file is a JSON header and raw little-endian rows; its length is known before a row is. The header is padded
    to a page, so that rows can be mapped where they lie, by this package and by runtimes that an ONNX file leads here.
    """
    end = shape[0] * shape[1] * dtype.itemsize
    entry = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [0, end]}
    text = json.dumps({name: entry}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for rows in blocks:
            file.write(bytes_of(rows.contiguous()))


@contextlib.contextmanager
def complete(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns what is missing or malformed in a file's content into a typed error.

    Raises:
        FileFormatError: the code inside missed an entry, or met one of another form.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, msgspec.ValidationError) as error:
        raise FileFormatError(f"'{path}' is damaged, it is no complete {kind} file: {error!r}") from error


def load_tensors(path: str | os.PathLike[str], kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what :func:`save_tensors` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, not a safetensors file, of another kind or version.
    """
    target = Path(path)
    if not target.is_file():
        raise FileFormatError(f"there is no file '{target}'")
    try:
        with safe_open(str(target), framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: in the file a tensor lies where the header's length puts it, and products of numbers that are not
            # aligned may round differently.
            read = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
        header = json.loads(metadata.get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"'{target}' is truncated, damaged, or not a {kind} file: {error}") from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        found = header.get("kind") if isinstance(header, dict) else None
        raise FileFormatError(f"'{target}' holds {found or 'something else'}, not a {kind}")
    if header.get("version") != version:
        raise FileFormatError(
            f"'{target}' is a {kind} of version {header.get('version')}; this code reads version {version}"
        )
    return header, read
