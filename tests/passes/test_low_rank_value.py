"""Blocks under moves, against the same move on the decoded features."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.low_rank_value import Block, merge_identities, move_blocks, repeated_row, split_rows


def block(width: int, rank: int, site: str) -> Block:
    return Block(width, rank, site, torch.randn(width, rank).double(), torch.randn(width).double())


def identity(width: int) -> Block:
    return Block(width, width)


def decode(blocks, code: np.ndarray) -> np.ndarray:
    parts, column = [], 0
    for one in blocks:
        own = code[column : column + one.rank]
        column += one.rank
        parts.append(own if one.decoder is None else one.decoder.numpy() @ own + one.offset.numpy())
    return np.concatenate(parts)


BLOCKS = [block(4, 2, "a"), identity(3), block(4, 2, "b"), block(2, 1, "c")]


@settings(deadline=None, max_examples=100)
@given(first=st.integers(0, 13), length=st.integers(1, 13), step=st.integers(1, 3))
def test_a_slice_of_the_blocks_decodes_to_the_slice_of_the_features(first: int, length: int, step: int) -> None:
    positions = np.arange(13)[first : first + length : step]
    if positions.size == 0:
        return
    code = np.random.default_rng(0).normal(size=8)
    moved = move_blocks(BLOCKS, positions)
    assert moved is not None
    picked = np.concatenate([code[start:end] for start, end in moved.columns])
    np.testing.assert_allclose(decode(moved.blocks, picked), decode(BLOCKS, code)[positions])


def test_a_permutation_of_whole_blocks_moves_their_codes() -> None:
    positions = np.concatenate([np.arange(7, 11), np.arange(4)])
    moved = move_blocks(BLOCKS, positions)
    assert moved is not None
    assert [one.site for one in moved.blocks] == ["b", "a"]
    assert moved.column_runs() == [(5, 7), (0, 2)]


def test_a_transpose_that_strews_a_block_is_refused() -> None:
    blocks = [block(4, 2, "a"), block(4, 2, "b")]
    assert move_blocks(blocks, np.arange(8).reshape(2, 4).T) is None


def test_a_transpose_of_identity_features_is_no_tear() -> None:
    moved = move_blocks([identity(6)], np.arange(6).reshape(2, 3).T)
    assert moved is not None
    picked = np.concatenate([np.arange(6)[start:end] for start, end in moved.columns])
    assert picked.tolist() == [0, 3, 1, 4, 2, 5]


def test_repeating_a_block_repeats_its_code() -> None:
    moved = move_blocks([block(4, 2, "a")], np.tile(np.arange(4), 3))
    assert moved is not None
    assert moved.columns == ((0, 2),) * 3


def test_taking_rows_of_rows_keeps_the_site_rows() -> None:
    taken = BLOCKS[0].take([1, 2, 3]).take([0, 2])
    assert taken.rows == (1, 3)
    assert taken.decoder is not None
    assert BLOCKS[0].decoder is not None
    assert torch.equal(taken.decoder, BLOCKS[0].decoder[[1, 3]])
    assert not taken.same_decoder(BLOCKS[0])


def test_rows_are_cut_only_between_blocks() -> None:
    assert split_rows([block(4, 2, "a"), identity(4)], 3) is None
    rows = split_rows([block(4, 2, "a"), identity(4), block(2, 1, "c")], 5)
    assert rows is not None
    assert [[(one.site, one.width) for one in row] for row in rows] == [[("a", 4), (None, 1)], [(None, 3), ("c", 2)]]


def test_a_repeated_row_is_found_only_where_decoders_agree() -> None:
    a, b = block(4, 2, "a"), block(4, 2, "b")
    assert repeated_row([a, identity(1), a, identity(1)], 5) == (a, identity(1))
    assert repeated_row([a, b], 4) is None
    assert repeated_row([identity(12)], 4) == (identity(4),)


def test_neighbouring_identities_merge() -> None:
    a = block(4, 2, "a")
    assert merge_identities([identity(1), identity(2), a, identity(3)]) == (identity(3), a, identity(3))
