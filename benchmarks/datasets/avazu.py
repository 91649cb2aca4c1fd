"""Avazu click-through-rate prediction, the raw train file: a csv with a header, ``hour`` written YYMMDDHH."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa

from afm_fx.errors import FileFormatError
from benchmarks.datasets.raw import (
    RawTable,
    check_labels,
    find_file,
    float_column,
    hash_string,
    hash_strings,
    stream_delimited,
)

FILE_NAMES = ("train", "train.csv", "train.gz", "train.csv.gz")
CATEGORIES = (
    "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model", "device_type", "device_conn_type",
    "C14", "C15", "C16", "C17", "C18", "C19", "C20", "C21",
)  # fmt: skip


def read_avazu(path: Path, max_rows: int | None = None) -> RawTable:
    """Reads the train file, or its first ``max_rows`` rows.

    All fields are categorical. ``id``, unique per row, is dropped; ``hour`` becomes the hour of day and the day of
    week.

    Raises:
        FileFormatError: see :func:`benchmarks.datasets.raw.stream_delimited`; also a label that is not 0 or 1, and
            an hour that is no date.
    """
    file = find_file(path, FILE_NAMES)
    types = {"id": pa.string(), "click": pa.int8(), **dict.fromkeys(("hour", *CATEGORIES), pa.string())}
    labels = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("hour_of_day", "day_of_week", *CATEGORIES)}
    for batch in stream_delimited(file, types, delimiter=",", header=True, max_rows=max_rows):
        labels.append(float_column(batch.column("click")))
        hour, day = _hour_and_day(batch.column("hour"), file)
        columns["hour_of_day"].append(hour)
        columns["day_of_week"].append(day)
        for name in CATEGORIES:
            columns[name].append(hash_strings(batch.column(name)))
    if not labels:
        raise FileFormatError(f"'{file}' holds no rows")
    categorical = {name: np.concatenate(parts) for name, parts in columns.items()}
    return RawTable(check_labels(np.concatenate(labels), file), categorical, {})


def _hour_and_day(column: pa.Array, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the hour of day and the day of week; the dates are few, so each distinct one is parsed once."""
    encoded = column.dictionary_encode()
    hours, days = [], []
    for text in encoded.dictionary.to_pylist():
        try:
            when = dt.datetime.strptime(text, "%y%m%d%H")  # noqa: DTZ007 - the file gives no time zone
        except ValueError as error:
            raise FileFormatError(f"'{file}' has the hour '{text}', expected YYMMDDHH") from error
        hours.append(hash_string(str(when.hour)))
        days.append(hash_string(str(when.weekday())))
    indices = encoded.indices.to_numpy(zero_copy_only=False)
    return np.array(hours, dtype=np.uint64)[indices], np.array(days, dtype=np.uint64)[indices]
