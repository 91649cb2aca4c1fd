"""Finds the file that another names, an ONNX file's weights or a piece of a checkpoint; no name leads out of the
folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from afm_fx.errors import FileFormatError, UnsafeFileError

_LONGEST_NAME = 4096


def external_file(folder: Path, location: str) -> Path:
    """The file that a location leads to.

    Args:
        folder: of the file that names it, symbolic links resolved.

    Raises:
        UnsafeFileError: it leads outside the folder; the message ends a sentence that begins with the tensor.
        FileFormatError: there is no such file, or it is no regular file.
    """
    plain = "\0" not in location and len(location) <= _LONGEST_NAME
    # A file may be written on one system and opened on another: neither's way to write a path may climb out.
    for kind in (PurePosixPath, PureWindowsPath):
        named = kind(location) if plain else kind("..")
        if named.is_absolute() or named.drive or named.root or ".." in named.parts:
            raise UnsafeFileError(f"lies in '{location[:200]}', outside the folder of the file that names it")
    file = folder / location
    resolved = file.resolve()
    if not resolved.is_relative_to(folder):
        raise UnsafeFileError(
            f"lies in '{location}', a symbolic link that leads out of the folder of the file that names it"
        )
    if not resolved.exists():
        raise FileFormatError(f"lies in '{location}', which is not beside the file that names it: copy both")
    if not resolved.is_file():
        raise UnsafeFileError(f"lies in '{location}', which is no regular file")
    return resolved
