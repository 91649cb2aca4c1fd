"""Which rows a process takes: pure functions of the units, the same in every process and for any number of them."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from afm_fx.data_units import Unit, cut

Covered = Mapping[int, Sequence[tuple[int, int]]]
"""Rows that were seen: by unit, pieces ``(start, stop)``."""


@dataclass(frozen=True, order=True)
class Piece:
    """Rows ``start`` to ``stop`` of a unit."""

    unit: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def pieces_of(units: Sequence[Unit], max_rows: int | None = None) -> list[Piece]:
    """The units as pieces, the first ``max_rows`` rows of them; units without rows are left out."""
    left = sum(unit.rows for unit in units) if max_rows is None else max_rows
    pieces = []
    for number, unit in enumerate(units):
        rows = min(unit.rows, left)
        left -= rows
        if rows:
            pieces.append(Piece(number, 0, rows))
    return pieces


def without(pieces: Iterable[Piece], covered: Covered) -> list[Piece]:
    """What is left of the pieces once rows were seen."""
    left = []
    for piece in pieces:
        start = piece.start
        for begin, end in sorted(covered.get(piece.unit, ())):
            if start < begin:
                left.append(Piece(piece.unit, start, min(begin, piece.stop)))
            start = max(start, end)
        if start < piece.stop:
            left.append(Piece(piece.unit, start, piece.stop))
    return left


def joined(pieces: list[Piece], more: Piece) -> list[Piece]:
    """The pieces with one more, which is put together with the last where it follows on it."""
    if pieces and (pieces[-1].unit, pieces[-1].stop) == (more.unit, more.start):
        return [*pieces[:-1], Piece(more.unit, pieces[-1].start, more.stop)]
    return [*pieces, more]


def shared_out(pieces: Sequence[Piece], world: int) -> list[list[Piece]]:
    """The pieces of every process: the largest first, each to the one with the fewest rows; in the order of the data.

    No process has more than the fewest rows that any has, plus the rows of one piece.
    """
    loads = [(0, rank) for rank in range(world)]
    shares: list[list[Piece]] = [[] for _ in range(world)]
    for piece in sorted(pieces, key=lambda piece: (-piece.rows, piece)):
        rows, rank = heapq.heappop(loads)
        shares[rank].append(piece)
        heapq.heappush(loads, (rows + piece.rows, rank))
    return [sorted(share) for share in shares]


def gradient_batches(pieces: Iterable[Piece], batch_size: int, rows: int) -> frozenset[tuple[int, int]]:
    """The batches, by unit and first row, that gradients are taken on: evenly spread over all data.

    Args:
        pieces: all of the data, whoever reads them.
        batch_size: rows a batch.
        rows: how many rows they hold together at least, where there are so many; less than a batch more.
    """
    whole = list(pieces)
    total = sum(piece.rows for piece in whole)
    chosen, taken, seen = [], 0, 0
    if rows <= 0:
        return frozenset()
    for piece in whole:
        for start, stop in cut(piece.rows, batch_size):
            seen += stop - start
            if taken * total < min(rows, total) * seen:
                chosen.append((piece.unit, piece.start + start))
                taken += stop - start
    return frozenset(chosen)


def share_of(rows: int, rank: int, world: int) -> int:
    """One process's part of a number of rows; the parts of all add up to it."""
    return rows // world + (rank < rows % world)


def seed_of_batch(unit: int, start: int) -> int:
    """The seed of a batch's random numbers: its place in the data decides, not who reads it or when."""
    digest = hashlib.sha256(f"{unit} {start}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
