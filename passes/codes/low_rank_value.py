"""Low-rank values: what the rewrite knows about a tensor whose features are written as codes.

A value of logical shape ``[*lead, *trailing]`` is carried by one *code* node of shape ``[*lead, C]``. Row-major over
the trailing axes, the value is a sequence of blocks; a block names its columns of the code and the decoder that turns
them into features. Dense pieces are blocks with the identity as decoder. Where offsets were gated, a second node of
shape ``[*lead, K]`` holds the units (see :mod:`passes.codes.decoder`).

Blocks refer to columns, so anything that merely moves features about (slice, select, transpose, expand, split ...)
needs no node at all: the same operation is run on the features' *positions* ``0, 1, ..., prod(trailing) - 1``, which
tells the block that every feature came from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.fx import Node

from passes.codes.decoder import Decoder, identity


@dataclass(frozen=True)
class Block:
    """A run of features that share a code.

    Attributes:
        columns: the code columns, as many as the decoder's rank.
        unit: the column of the units that scales the decoder's gated offset, None where it has none.
    """

    columns: tuple[int, ...]
    decoder: Decoder
    unit: int | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        return self.decoder.width

    def decodes_like(self, other: Block) -> bool:
        """Whether both have the same decoder, offsets included, and a unit or none."""
        return self.decoder.same_constants(other.decoder) and (self.unit is None) == (other.unit is None)

    def take(self, rows: Sequence[int]) -> Block:
        """The block of some of its features; where each has a column of its own, those columns alone."""
        columns = tuple(self.columns[row] for row in rows) if self.decoder.is_elementwise else self.columns
        return replace(self, columns=columns, decoder=self.decoder.take(rows))

    def moved(self, columns: int, units: int) -> Block:
        """The block after the code and the units grew by some columns in front."""
        unit = None if self.unit is None else self.unit + units
        return replace(self, columns=tuple(column + columns for column in self.columns), unit=unit)


@dataclass(frozen=True)
class LowRankValue:
    """A tensor written as codes.

    Attributes:
        code: node of shape ``[*lead, C]``.
        lead: leading axes (ints and symbols), the same for code, units and value.
        trailing: static feature axes of the value; their product is the sum of the blocks' widths.
        blocks: row-major over ``trailing``.
        units: node of shape ``[*lead, K]``, None where no offset is gated.
    """

    code: Node
    lead: tuple[Any, ...]
    trailing: tuple[int, ...]
    blocks: tuple[Block, ...]
    units: Node | None = None

    @property
    def features(self) -> int:
        """Number of features, ``prod(trailing)``."""
        return math.prod(self.trailing)

    @functools.cached_property
    def sites(self) -> tuple[str, ...]:
        """The factored sites inside, each once, in order."""
        return tuple(dict.fromkeys(site for block in self.blocks for site, _ in block.decoder.terms))

    @property
    def has_code(self) -> bool:
        """Whether any features come from the code: constants (tables of rank 0) do not."""
        return any(block.columns for block in self.blocks)

    @property
    def shape(self) -> tuple[Any, ...]:
        """The logical shape."""
        return (*self.lead, *self.trailing)

    def with_decoders(self, change: Callable[[Decoder, slice], Decoder]) -> LowRankValue:
        """The same code decoded otherwise; ``change`` is told which features a decoder gives."""
        blocks, first = list[Block](), 0
        for block in self.blocks:
            blocks.append(replace(block, decoder=change(block.decoder, slice(first, first + block.width))))
            first += block.width
        return self.with_blocks(blocks, self.trailing)

    def with_blocks(self, blocks: Sequence[Block], trailing: tuple[int, ...]) -> LowRankValue:
        """The same code read through other blocks."""
        return replace(self, blocks=merge_identities(blocks), trailing=trailing)


def plain_block(width: int, first_column: int = 0) -> Block:
    """Features that are their own code."""
    return Block(tuple(range(first_column, first_column + width)), identity(width))


def move_blocks(blocks: Sequence[Block], positions: np.ndarray[Any, Any]) -> tuple[Block, ...] | None:
    """The blocks of a value whose feature k is feature ``positions[k]`` of a value with the given blocks.

    Returns:
        None where the move tears a factored block apart: its features would lie apart and each part would still need
        the whole code, so that codes would be no shorter than the features.
    """
    owners = np.repeat(np.arange(len(blocks)), [block.width for block in blocks])
    starts = np.cumsum([0, *(block.width for block in blocks)])
    flat = positions.reshape(-1)
    owner = owners[flat]
    local = flat - starts[owner]
    breaks = np.flatnonzero((np.diff(owner) != 0) | (np.diff(local) <= 0)) + 1
    result: list[Block] = []
    kept_rows: dict[int, tuple[int, ...]] = {}
    for run in np.split(np.arange(flat.size), breaks):
        if run.size == 0:
            continue
        which = int(owner[run[0]])
        rows = tuple(int(row) for row in local[run])
        if not blocks[which].decoder.is_elementwise and kept_rows.setdefault(which, rows) != rows:
            return None
        result.append(blocks[which].take(rows))
    return tuple(result)


def merge_identities(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Neighbouring plain blocks as one."""
    merged: list[Block] = []
    for block in blocks:
        if merged and block.decoder.is_plain and merged[-1].decoder.is_plain:
            columns = (*merged[-1].columns, *block.columns)
            merged[-1] = Block(columns, identity(len(columns)))
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
            if not rest.decoder.is_elementwise:
                return None
            piece = row - filled
            if piece:
                rows[-1].append(rest.take(range(piece)))
                rest = rest.take(range(piece, rest.width))
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


def align(one: Sequence[Block], other: Sequence[Block]) -> list[tuple[Block, Block]] | None:
    """Cuts two sequences of blocks over the same features into pairs; None where factored blocks straddle."""
    pairs: list[tuple[Block, Block]] = []
    left, right = list(reversed(one)), list(reversed(other))
    while left and right:
        first, second = left.pop(), right.pop()
        width = min(first.width, second.width)
        for longer, stack in ((first, left), (second, right)):
            if longer.width > width:
                if not longer.decoder.is_elementwise:
                    return None
                stack.append(longer.take(range(width, longer.width)))
        pairs.append((first.take(range(width)), second.take(range(width))))
    return pairs
