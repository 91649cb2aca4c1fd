"""Files of named tensors with a JSON header (safetensors: no pickle), written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from afm_fx.errors import FileFormatError
from afm_fx.output_directory import refuse_existing_file, staging_directory

HEADER = "afm_fx"


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
    target = Path(path)
    refuse_existing_file(target, force=force)
    document = json.dumps({"kind": kind, "version": version, **header}, sort_keys=True)
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with staging_directory(target) as directory:
        staged = directory / target.name
        with staged.open("wb") as file:  # save_file would let nobody but the owner read it
            file.write(save(copies, {HEADER: document}))
            file.flush()
            os.fsync(file.fileno())  # or a machine that stops could leave the new name with nothing behind it
        staged.replace(target)


@contextlib.contextmanager
def complete(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns what is missing or malformed in a file's content into a typed error.

    Raises:
        FileFormatError: the code inside missed an entry, or met one of another form.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"'{path}' is damaged, it is no complete {kind} file: {error!r}") from error


def load_header(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, Any]:
    """Reads the header of what :func:`save_tensors` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, not a safetensors file, of another kind or version.
    """
    return _read(Path(path), kind, version, tensors=False)[0]


def load_tensors(path: str | os.PathLike[str], kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what :func:`save_tensors` wrote.

    Raises:
        FileFormatError: the file is missing, truncated, not a safetensors file, of another kind or version.
    """
    return _read(Path(path), kind, version, tensors=True)


def _read(target: Path, kind: str, version: int, *, tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not target.is_file():
        raise FileFormatError(f"there is no file '{target}'")
    try:
        with safe_open(str(target), framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: in the file a tensor lies where the header's length puts it, and products of numbers that are not
            # aligned may round differently.
            names = file.keys() if tensors else ()
            read = {name: file.get_tensor(name).clone() for name in names}
        header = json.loads(metadata.get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"'{target}' is truncated, damaged, or not a {kind} file: {error}") from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        found = header.get("kind") if isinstance(header, dict) else None
        raise FileFormatError(f"'{target}' holds {found or 'something else'}, not a {kind}")
    if header.get("version") != version:
        raise FileFormatError(
            f"'{target}' is a {kind} of version {header.get('version')}; this code reads version {version}"
        )
    return header, read
