"""Criteo Display Advertising Challenge, the raw train file: label, I1-I13, C1-C26, tab-separated, no header,
an empty cell is a missing value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from afm_fx.errors import FileFormatError
from benchmarks.datasets.raw import RawTable, check_labels, find_file, float_column, hash_strings, stream_delimited

FILE_NAMES = ("train.txt", "train.tsv", "train.txt.gz", "train.tsv.gz")
INTEGERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))


def read_criteo(path: Path, max_rows: int | None = None) -> RawTable:
    """Reads the train file, or its first ``max_rows`` rows. Integers are returned log-transformed.

    Raises:
        FileFormatError: see :func:`benchmarks.datasets.raw.stream_delimited`; also a label that is not 0 or 1.
    """
    file = find_file(path, FILE_NAMES)
    types = {"label": pa.int8(), **dict.fromkeys(INTEGERS, pa.int64()), **dict.fromkeys(CATEGORIES, pa.string())}
    labels = []
    integers: dict[str, list[np.ndarray]] = {name: [] for name in INTEGERS}
    categories: dict[str, list[np.ndarray]] = {name: [] for name in CATEGORIES}
    for batch in stream_delimited(file, types, delimiter="\t", header=False, max_rows=max_rows):
        labels.append(float_column(batch.column("label")))
        for name in INTEGERS:
            integers[name].append(symmetric_log(float_column(batch.column(name))))
        for name in CATEGORIES:
            categories[name].append(hash_strings(batch.column(name)))
    if not labels:
        raise FileFormatError(f"'{file}' holds no rows")
    return RawTable(
        check_labels(np.concatenate(labels), file),
        {name: np.concatenate(parts) for name, parts in categories.items()},
        {name: np.concatenate(parts) for name, parts in integers.items()},
    )


def symmetric_log(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|): tames counts with heavy tails, and takes the few negative ones of I2; NaN stays NaN."""
    return np.sign(values) * np.log1p(np.abs(values))
