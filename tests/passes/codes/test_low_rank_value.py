"""Blocks under moves, against the same move on the decoded features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

from passes.codes.decoder import Decoder
from passes.codes.low_rank_value import Block, align, merge_identities, move_blocks, plain_block, split_rows


def block(width: int, rank: int, site: str, first: int = 0) -> Block:
    matrix, offset = torch.randn(width, rank).double(), torch.randn(width).double()
    key = ("site", site)
    decoder = Decoder(width, rank, key, key, matrix=matrix, offset=offset, terms=((site, width),))
    return Block(tuple(range(first, first + rank)), decoder)


def decode(blocks: Sequence[Block], code: np.ndarray) -> np.ndarray:
    parts = []
    for one in blocks:
        own = code[list(one.columns)]
        decoder = one.decoder
        parts.append(own if decoder.matrix is None else decoder.matrix.numpy() @ own)
        if decoder.offset is not None:
            parts[-1] = parts[-1] + decoder.offset.numpy()
    return np.concatenate(parts)


BLOCKS = [block(4, 2, "a"), plain_block(3, 2), block(4, 2, "b", 5), block(2, 1, "c", 7)]


@settings(deadline=None, max_examples=100)
@given(first=st.integers(0, 13), length=st.integers(1, 13), step=st.integers(1, 3))
def test_a_slice_of_the_blocks_decodes_to_the_slice_of_the_features(first: int, length: int, step: int) -> None:
    positions = np.arange(13)[first : first + length : step]
    if positions.size == 0:
        return
    code = np.random.default_rng(0).normal(size=8)
    moved = move_blocks(BLOCKS, positions)
    assert moved is not None
    np.testing.assert_allclose(decode(moved, code), decode(BLOCKS, code)[positions])


def test_a_permutation_of_whole_blocks_keeps_their_columns() -> None:
    moved = move_blocks(BLOCKS, np.concatenate([np.arange(7, 11), np.arange(4)]))
    assert moved is not None
    assert [one.columns for one in moved] == [(5, 6), (0, 1)]


def test_a_transpose_that_strews_a_block_is_refused() -> None:
    blocks = [block(4, 2, "a"), block(4, 2, "b", 2)]
    assert move_blocks(blocks, np.arange(8).reshape(2, 4).T) is None


def test_a_transpose_of_plain_features_is_no_tear() -> None:
    moved = move_blocks([plain_block(6)], np.arange(6).reshape(2, 3).T)
    assert moved is not None
    assert merge_identities(moved)[0].columns == (0, 3, 1, 4, 2, 5)


def test_repeating_a_block_reads_its_code_again() -> None:
    moved = move_blocks([block(4, 2, "a")], np.tile(np.arange(4), 3))
    assert moved is not None
    assert [one.columns for one in moved] == [(0, 1)] * 3


def test_rows_of_rows_are_rows() -> None:
    decoder = BLOCKS[0].decoder
    taken = decoder.take([1, 2, 3]).take([0, 2])
    assert taken.key == ("rows", ("site", "a"), (1, 3))
    assert taken.same_constants(decoder.take([1, 3]))
    assert not taken.same_constants(decoder)


def test_rows_are_cut_only_between_blocks() -> None:
    assert split_rows([block(4, 2, "a"), plain_block(4, 2)], 3) is None
    rows = split_rows([block(4, 2, "a"), plain_block(4, 2), block(2, 1, "c", 6)], 5)
    assert rows is not None
    assert [[one.columns for one in row] for row in rows] == [[(0, 1), (2,)], [(3, 4, 5), (6,)]]


def test_blocks_are_aligned_by_cutting_plain_ones() -> None:
    pairs = align([plain_block(6)], [block(4, 2, "a"), plain_block(2, 2)])
    assert pairs is not None
    assert [(one.columns, other.columns) for one, other in pairs] == [((0, 1, 2, 3), (0, 1)), ((4, 5), (2, 3))]
    assert align([block(4, 2, "a"), plain_block(2, 2)], [plain_block(2), block(4, 2, "b", 2)]) is None


def test_neighbouring_plain_blocks_merge() -> None:
    merged = merge_identities([plain_block(1), plain_block(2, 4), block(4, 2, "a", 6), plain_block(3, 8)])
    assert [one.columns for one in merged] == [(0, 4, 5), (6, 7), (8, 9, 10)]
