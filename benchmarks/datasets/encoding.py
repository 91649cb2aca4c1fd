"""From raw columns to model inputs: split, vocabularies fitted on the training rows, standardized numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from afm_fx.errors import UserError
from benchmarks.datasets.raw import RawTable

FLOAT32_EXACT_INTEGERS = 2**24
UNKNOWN = 0


@dataclass(frozen=True)
class EncodingConfig:
    """How a raw table is split and encoded.

    Attributes:
        seed: of the random split.
        validation_share: share of the rows held out for early stopping.
        test_share: share of the rows that measure.
        min_count: a category is in the vocabulary where it occurs so often in the training rows; row 0 of each
            table stands for all others.
        hash_buckets: instead of a vocabulary, hash each field into so many rows (collisions included).
    """

    seed: int = 2024
    validation_share: float = 0.1
    test_share: float = 0.1
    min_count: int = 1
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        if not (self.validation_share > 0 and self.test_share > 0 and self.validation_share + self.test_share < 1):
            raise UserError(
                f"validation_share {self.validation_share} and test_share {self.test_share} must be positive and leave "
                "rows to train on"
            )
        if self.min_count < 1:
            raise UserError(f"min_count must be at least 1, got {self.min_count}")
        if self.hash_buckets is not None and not 1 <= self.hash_buckets <= FLOAT32_EXACT_INTEGERS:
            raise UserError(f"hash_buckets must be 1 to {FLOAT32_EXACT_INTEGERS:,}, got {self.hash_buckets}")


@dataclass(frozen=True)
class SparseField:
    """A categorical field: its name and the number of rows of its embedding table."""

    name: str
    vocabulary_size: int


@dataclass(frozen=True)
class Rows:
    """One part of a split.

    Attributes:
        inputs: float32 [rows, sparse fields + dense features]; ids travel as float32, as deepctr-torch takes them.
        labels: float32 [rows], 0 or 1.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class CtrDataset:
    """An encoded dataset: its columns in order (sparse, then dense) and the three parts of the split."""

    sparse: tuple[SparseField, ...]
    dense: tuple[str, ...]
    train: Rows
    validation: Rows
    test: Rows


def encode(raw: RawTable, config: EncodingConfig) -> CtrDataset:
    """Splits at random and encodes; nothing about validation and test rows enters vocabularies or scales.

    Raises:
        UserError: too few rows to split, one of the parts lacks clicks or non-clicks, or a vocabulary that float32
            ids cannot address.
    """
    order = np.random.default_rng(config.seed).permutation(len(raw))
    test_rows, validation_rows = int(len(raw) * config.test_share), int(len(raw) * config.validation_share)
    parts = dict(
        zip(("test", "validation", "train"), np.split(order, [test_rows, test_rows + validation_rows]), strict=True)
    )
    for name, part in parts.items():
        if len(part) == 0 or raw.labels[part].min() == raw.labels[part].max():
            raise UserError(f"the {name} part ({len(part)} of {len(raw)} rows) needs both clicks and non-clicks")
    inputs = np.empty((len(raw), len(raw.categorical) + len(raw.numeric)), dtype=np.float32)
    sparse = []
    for column, (name, keys) in enumerate(raw.categorical.items()):
        inputs[:, column], size = _encode_field(name, keys, parts["train"], config)
        sparse.append(SparseField(name, size))
    for column, values in enumerate(raw.numeric.values(), start=len(sparse)):
        inputs[:, column] = standardize(values, parts["train"])
    rows = {
        name: Rows(torch.from_numpy(inputs[part]), torch.from_numpy(raw.labels[part])) for name, part in parts.items()
    }
    return CtrDataset(tuple(sparse), tuple(raw.numeric), rows["train"], rows["validation"], rows["test"])


def _encode_field(
    name: str, keys: NDArray[np.uint64], train: NDArray[np.int64], config: EncodingConfig
) -> tuple[NDArray[np.int64], int]:
    if config.hash_buckets is not None:
        return (keys % np.uint64(config.hash_buckets)).astype(np.int64), config.hash_buckets
    distinct, counts = np.unique(keys[train], return_counts=True)
    vocabulary = distinct[counts >= config.min_count]
    size = len(vocabulary) + 1
    if size > FLOAT32_EXACT_INTEGERS:
        raise UserError(
            f"field '{name}' has {size:,} categories; ids travel as float32, exact to {FLOAT32_EXACT_INTEGERS:,}: "
            "raise min_count or use hash_buckets"
        )
    return lookup(keys, vocabulary), size


def lookup(keys: NDArray[np.uint64], vocabulary: NDArray[np.uint64]) -> NDArray[np.int64]:
    """1 + the position of each key in the sorted vocabulary, or ``UNKNOWN`` where it is not there, [rows]."""
    if len(vocabulary) == 0:
        return np.full(len(keys), UNKNOWN, dtype=np.int64)
    position = np.minimum(np.searchsorted(vocabulary, keys), len(vocabulary) - 1)
    return np.where(vocabulary[position] == keys, position + 1, UNKNOWN)


def standardize(values: NDArray[np.float32], train: NDArray[np.int64]) -> NDArray[np.float32]:
    """Zero mean and unit deviation on the training rows, [rows]; missing values become 0, the mean.

    A feature that is constant or missing in all training rows becomes 0 throughout.
    """
    known = values[train].astype(np.float64)
    known = known[~np.isnan(known)]
    if len(known) == 0 or known.std() == 0:
        return np.zeros_like(values)
    return np.nan_to_num((values - known.mean()) / known.std(), nan=0.0).astype(np.float32)
