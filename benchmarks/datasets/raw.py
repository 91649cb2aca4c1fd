"""What every reader returns, and the two ways the public files are written: large delimited files, streamed with
``pyarrow``, and small ones with odd delimiters and encodings, read line by line."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from afm_fx.errors import FileFormatError
from afm_fx.io import track

BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class RawTable:
    """One dataset as published, before any vocabulary is fitted.

    Attributes:
        labels: float32 [rows], 0 or 1.
        categorical: per field uint64 [rows], a 64-bit hash of the raw string (so equal strings have equal keys).
        numeric: per field float32 [rows], NaN where the value is missing.
    """

    labels: NDArray[np.float32]
    categorical: dict[str, NDArray[np.uint64]]
    numeric: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.labels)


def find_file(path: Path, names: Sequence[str]) -> Path:
    """The first of the named files in a folder; the path itself where it is a file.

    Raises:
        FileFormatError: there is none.
    """
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise FileFormatError(f"no {' or '.join(names)} in '{path}'")


def hash_string(text: str) -> int:
    """A 64-bit hash that is the same in every process (Python's own ``hash`` is not)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_strings(column: pa.Array) -> NDArray[np.uint64]:
    """64-bit hashes of a string column, [rows]; each distinct string is hashed once."""
    encoded = column.dictionary_encode()
    hashes = np.array([hash_string(text) for text in encoded.dictionary.to_pylist()], dtype=np.uint64)
    return hashes[encoded.indices.to_numpy(zero_copy_only=False)]


def stream_delimited(
    path: Path, types: Mapping[str, pa.DataType], *, delimiter: str, header: bool, max_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Streams a large delimited file (``.gz`` is decompressed) in record batches under a progress bar.

    Args:
        types: every column of the file in order, with its type; an empty cell is null, or "" in a string column.
        header: whether the first line names the columns; it must then name exactly ``types``.
        max_rows: stop after so many rows.

    Raises:
        FileFormatError: missing or empty file, wrong columns, a line with too few or too many cells (with its row
            number), a cell of another type, damaged compression.
    """
    if not path.is_file():
        raise FileFormatError(f"'{path}' does not exist")
    if path.stat().st_size == 0:
        raise FileFormatError(f"'{path}' is empty")
    read = csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, column_names=None if header else list(types))
    parse = csv.ParseOptions(delimiter=delimiter, quote_char=False)
    convert = csv.ConvertOptions(column_types=dict(types), null_values=[""], strings_can_be_null=False)
    left = max_rows
    try:
        with csv.open_csv(path, read, parse, convert) as reader:
            if reader.schema.names != list(types):
                raise FileFormatError(f"'{path}' has the columns {reader.schema.names}, expected {list(types)}")
            for batch in track(_batches(reader), f"Reading {path.name}", _blocks(path)):
                wanted = batch if left is None else batch.slice(0, left)
                if wanted.num_rows:
                    yield wanted
                if left is not None:
                    left -= wanted.num_rows
                    if left == 0:
                        return
    except (pa.ArrowInvalid, OSError) as error:
        raise FileFormatError(f"'{path}' is not what it should be: {error}") from error


def _batches(reader: csv.CSVStreamingReader) -> Iterator[pa.RecordBatch]:
    yield from reader


def _blocks(path: Path) -> int | None:
    """How many blocks an uncompressed file has; unknown for a compressed one."""
    return None if path.suffix == ".gz" else -(-path.stat().st_size // BLOCK_BYTES)


def read_lines(path: Path, delimiter: str, columns: int, *, encoding: str = "utf-8") -> list[list[str]]:
    """Reads a small delimited file without quoting, such as MovieLens' ``::``-separated ones.

    Raises:
        FileFormatError: missing or empty file, wrong encoding, damaged compression, or a line with another number
            of cells than ``columns``.
    """
    if not path.is_file():
        raise FileFormatError(f"'{path}' does not exist")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    rows = []
    try:
        with opener(path, "rt", encoding=encoding, newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                cells = line.rstrip("\r\n").split(delimiter)
                if len(cells) != columns:
                    raise FileFormatError(
                        f"'{path}' line {number} has {len(cells)} cells separated by {delimiter!r}, expected {columns}"
                    )
                rows.append(cells)
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise FileFormatError(f"'{path}' cannot be read: {error}") from error
    if not rows:
        raise FileFormatError(f"'{path}' is empty")
    return rows


def float_column(column: pa.Array) -> NDArray[np.float32]:
    """A numeric column as float32, null as NaN, [rows]."""
    return column.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False).astype(np.float32)


def check_labels(labels: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """The labels, which must all be 0 or 1.

    Raises:
        FileFormatError: with the first row whose label is neither.
    """
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise FileFormatError(f"'{path}' row {wrong[0] + 1} has the label {labels[wrong[0]]:g}, expected 0 or 1")
    return labels
