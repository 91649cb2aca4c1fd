"""Low-rank values: what the rewrite knows about a tensor whose features are written as codes.

A value of logical shape ``[*lead, *trailing]`` is carried by one *code* node of shape ``[*lead, R]``. Row-major over
the trailing axes, the value is a sequence of blocks; block i owns the next ``rank_i`` columns of the code and stands
for the next ``width_i`` features, ``y_i = A_i z_i + o_i``. Dense pieces are identity blocks, ``y_i = z_i``.

Anything that merely moves features about (slice, select, transpose, expand, split ...) is the same operation on the
*positions* ``0, 1, ..., prod(trailing) - 1``: run it on them, and read off which block every feature came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node


@dataclass(frozen=True)
class Block:
    """A run of features that share a code.

    Attributes:
        width: number of features.
        rank: number of code columns (``width`` for an identity block).
        site: name of the factored site, None for an identity block.
        decoder: [width, rank], None for an identity block.
        offset: [width], None for no offset.
        rows: the rows of the site's decoder that the block keeps, None for all of them.
    """

    width: int
    rank: int
    site: str | None = None
    decoder: Tensor | None = None
    offset: Tensor | None = None
    rows: tuple[int, ...] | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the features are their own code."""
        return self.decoder is None

    def same_decoder(self, other: Block) -> bool:
        """Whether both blocks decode alike."""
        return self.key() == other.key()

    def key(self) -> tuple[str | None, tuple[int, ...] | None, int, int]:
        """What tells decoders of one graph apart."""
        return self.site, self.rows, self.width, self.rank

    def take(self, rows: Sequence[int]) -> Block:
        """The block of some of its features. All of an identity block's columns that are kept become its code."""
        if self.decoder is None:
            return Block(len(rows), len(rows))
        if list(rows) == list(range(self.width)):
            return self
        index = list(rows)
        return replace(
            self,
            width=len(index),
            decoder=self.decoder[index],
            offset=None if self.offset is None else self.offset[index],
            rows=tuple(index if self.rows is None else (self.rows[row] for row in index)),
        )


@dataclass(frozen=True)
class LowRankValue:
    """A tensor written as codes.

    Attributes:
        code: node of shape ``[*lead, R]``.
        lead: leading axes (ints and symbols), the same for code and value.
        trailing: static feature axes of the value; their product is the sum of the blocks' widths.
        blocks: row-major over ``trailing``.
    """

    code: Node
    lead: tuple[Any, ...]
    trailing: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def features(self) -> int:
        """Number of features, ``prod(trailing)``."""
        return math.prod(self.trailing)

    @property
    def code_width(self) -> int:
        """Number R of code columns."""
        return sum(block.rank for block in self.blocks)

    @property
    def sites(self) -> tuple[str, ...]:
        """The factored sites inside, each once, in order."""
        return tuple(dict.fromkeys(block.site for block in self.blocks if block.site is not None))

    @property
    def shape(self) -> tuple[Any, ...]:
        """The logical shape."""
        return (*self.lead, *self.trailing)


@dataclass(frozen=True)
class Move:
    """The outcome of moving features about.

    Attributes:
        blocks: the blocks of the result.
        columns: for each of them, the code columns ``(first, end)`` it takes.
    """

    blocks: tuple[Block, ...]
    columns: tuple[tuple[int, int], ...]

    def column_runs(self) -> list[tuple[int, int]]:
        """The columns as maximal contiguous runs."""
        runs: list[tuple[int, int]] = []
        for first, end in self.columns:
            if runs and runs[-1][1] == first:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((first, end))
        return runs


def move_blocks(blocks: Sequence[Block], positions: np.ndarray[Any, Any]) -> Move | None:
    """The blocks of a value whose feature k is feature ``positions[k]`` of a value with the given blocks.

    Returns:
        None where the move tears a factored block apart: two different runs of one block would each need the whole
        code, so that codes would be no shorter than the features.
    """
    owners = np.repeat(np.arange(len(blocks)), [block.width for block in blocks])
    starts = np.cumsum([0, *(block.width for block in blocks)])
    columns = np.cumsum([0, *(block.rank for block in blocks)])
    flat = positions.reshape(-1)
    owner = owners[flat]
    local = flat - starts[owner]
    breaks = np.flatnonzero((np.diff(owner) != 0) | (np.diff(local) <= 0)) + 1
    result: list[Block] = []
    taken: list[tuple[int, int]] = []
    kept_rows: dict[int, tuple[int, ...]] = {}
    for run in np.split(np.arange(flat.size), breaks):
        if run.size == 0:
            continue
        which = int(owner[run[0]])
        rows = tuple(int(row) for row in local[run])
        block = blocks[which]
        if block.is_identity:
            _append_identity(result, taken, int(columns[which]), rows)
            continue
        if kept_rows.setdefault(which, rows) != rows:
            return None
        result.append(block.take(rows))
        taken.append((int(columns[which]), int(columns[which + 1])))
    return Move(tuple(result), tuple(taken))


def _append_identity(result: list[Block], taken: list[tuple[int, int]], column: int, rows: tuple[int, ...]) -> None:
    """Adds identity features in contiguous pieces (a run of rows may skip some)."""
    pieces = np.split(np.asarray(rows), np.flatnonzero(np.diff(rows) != 1) + 1)
    for piece in pieces:
        result.append(Block(len(piece), len(piece)))
        taken.append((column + int(piece[0]), column + int(piece[-1]) + 1))


def merge_identities(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Neighbouring identity blocks as one."""
    merged: list[Block] = []
    for block in blocks:
        if merged and block.is_identity and merged[-1].is_identity:
            width = merged[-1].width + block.width
            merged[-1] = Block(width, width)
        else:
            merged.append(block)
    return tuple(merged)


def split_rows(blocks: Sequence[Block], row: int) -> list[tuple[Block, ...]] | None:
    """Cuts the blocks into rows of ``row`` features; None where a factored block straddles a cut."""
    rows: list[list[Block]] = [[]]
    filled = 0
    for block in blocks:
        rest = block
        while filled + rest.width > row:
            if not rest.is_identity:
                return None
            piece = row - filled
            if piece:
                rows[-1].append(Block(piece, piece))
                rest = Block(rest.width - piece, rest.width - piece)
            rows.append([])
            filled = 0
        rows[-1].append(rest)
        filled += rest.width
        if filled == row:
            rows.append([])
            filled = 0
    if not rows[-1]:
        rows.pop()
    return [tuple(line) for line in rows]


def repeated_row(blocks: Sequence[Block], row: int) -> tuple[Block, ...] | None:
    """The blocks of one row of ``row`` features where all rows decode alike, else None."""
    rows = split_rows(blocks, row)
    if not rows:
        return None
    first = rows[0]
    for line in rows[1:]:
        if len(line) != len(first) or not all(map(Block.same_decoder, first, line)):
            return None
    return first
