"""Reads a table's features in blocks, one block ahead of whoever encodes them, with a digest of every block's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afm_fx.streamed_plan import TableSource
from passes.factor import Factor
from passes.table_codes import ROWS_PER_BLOCK

BLOCK_BYTES = 1 << 25
"""Blocks of the usual number of rows are made smaller until they have no more bytes than this."""

SAMPLE_SHARE = 64
"""Of every block, one row of so many is looked at to tell how much of the features their code keeps."""


@dataclass(frozen=True)
class Block:
    """Some rows of a table.

    Attributes:
        start: the first of them.
        features: [rows, n], in the dtype that the model computes in.
        digest: of the bytes that they have in the checkpoint, 64 hexadecimal digits.
    """

    start: int
    features: Tensor
    digest: str

    @property
    def stop(self) -> int:
        """The row behind the last."""
        return self.start + self.features.shape[0]


def block_rows(source: TableSource, rows: int | None) -> int:
    """Rows of a block: as asked for, or as many as :func:`afm_fx.apply_plan` encodes at a time, fewer of wide rows."""
    if rows is not None:
        return rows
    wide = sum(table.shape[1] for table in source.tables) * max(table.dtype.itemsize for table in source.tables)
    rows = ROWS_PER_BLOCK
    while rows > 1 and rows * wide > BLOCK_BYTES:
        rows //= 2
    return rows


def read_blocks(source: TableSource, start: int, rows: int) -> Iterator[Block]:
    """The blocks of a table from a row on; the next one is read while the caller works on one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read table") as pool:
        ahead: Future[Block] | None = None
        for first in range(start, source.rows, rows):
            read = pool.submit(_read, source, first, min(first + rows, source.rows))
            if ahead is not None:
                yield ahead.result()
            ahead = read
        if ahead is not None:
            yield ahead.result()


def _read(source: TableSource, start: int, stop: int) -> Block:
    parts = [table.rows(start, stop) for table in source.tables]
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.view(-1).view(torch.uint8).numpy().data)
    return Block(start, source.features(parts), hashed.hexdigest())


@dataclass
class KeptEnergy:
    """How much of a table's features a factor keeps, by a sample of rows that count alike.

    Attributes:
        count: rows looked at.
        total: their features, added up, [n].
        squares: the sum of their squares.
        lost: the sum of squares of what the code does not tell.
    """

    count: int
    total: Tensor
    squares: float
    lost: float

    @classmethod
    def empty(cls, width: int) -> KeptEnergy:
        """No rows yet."""
        return cls(0, torch.zeros(width, dtype=torch.float64), 0.0, 0.0)

    def add(self, factor: Factor, features: Tensor) -> None:
        """Looks at one row of every ``SAMPLE_SHARE`` of a block."""
        sample = features[::SAMPLE_SHARE].to(torch.float64)
        rest = sample - factor.decode(factor.encode_table(sample))
        self.count += sample.shape[0]
        self.total += sample.sum(0)
        self.squares += float(sample.square().sum())
        self.lost += float(rest.square().sum())

    def share(self, factor: Factor) -> float:
        """The share of the energy (about the mean, or about zero if the factor is uncentred) that the code keeps."""
        energy = self.squares
        if factor.offset is not None and self.count:
            energy -= float(self.total.square().sum()) / self.count
        return 1.0 - self.lost / energy if energy > 0 else 1.0

    def as_json(self) -> dict[str, Any]:
        """For a journal."""
        return {"count": self.count, "total": self.total.tolist(), "squares": self.squares, "lost": self.lost}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> KeptEnergy:
        """What :meth:`as_json` wrote."""
        total = torch.tensor(found["total"], dtype=torch.float64)
        return cls(int(found["count"]), total, float(found["squares"]), float(found["lost"]))
