"""The datasets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from afm_fx.errors import UserError
from benchmarks.datasets.avazu import read_avazu
from benchmarks.datasets.criteo import read_criteo
from benchmarks.datasets.movielens import read_movielens_1m, read_movielens_100k
from benchmarks.datasets.raw import RawTable

DATASETS: dict[str, Callable[[Path, int | None], RawTable]] = {
    "movielens-1m": read_movielens_1m,
    "movielens-100k": read_movielens_100k,
    "criteo": read_criteo,
    "avazu": read_avazu,
}


def read_raw(name: str, path: Path, max_rows: int | None = None) -> RawTable:
    """Reads a dataset in its raw public format.

    Args:
        name: a key of :data:`DATASETS`.
        path: the folder the dataset was unpacked in (for Criteo and Avazu, the train file itself will do).
        max_rows: read only the first so many rows.

    Raises:
        UserError: unknown name, or no rows asked for.
        FileFormatError: a file is missing, empty, truncated or of another format.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset '{name}'; known: {', '.join(DATASETS)}")
    if max_rows is not None and max_rows < 1:
        raise UserError(f"max_rows must be at least 1, got {max_rows}")
    return DATASETS[name](path, max_rows)
