"""Sharing out units: every row once, whoever reads, and as evenly as the units allow."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from afm_fx.data_units import Unit
from afm_fx.shares import Piece, gradient_batches, joined, pieces_of, seed_of_batch, share_of, shared_out, without

UNITS = st.lists(st.integers(0, 40), min_size=1, max_size=12).map(
    lambda rows: [Unit(str(number), count) for number, count in enumerate(rows)]
)


def rows_of(pieces: list[Piece]) -> Counter[tuple[int, int]]:
    return Counter((piece.unit, row) for piece in pieces for row in range(piece.start, piece.stop))


@given(UNITS, st.integers(1, 5), st.integers(1, 200))
def test_every_row_is_in_one_share_and_no_share_is_larger_than_the_smallest_by_more_than_a_unit(units, world, limit):
    pieces = pieces_of(units, limit)
    shares = shared_out(pieces, world)
    assert len(shares) == world
    every = Counter(rows_of([piece for share in shares for piece in share]))
    whole = [(number, row) for number, unit in enumerate(units) for row in range(unit.rows)]
    assert every == Counter(whole[:limit])
    loads = [sum(piece.rows for piece in share) for share in shares]
    assert max(loads) - min(loads) <= max((piece.rows for piece in pieces), default=0)


@given(UNITS, st.data())
def test_what_is_left_is_what_was_not_covered(units, data):
    pieces = pieces_of(units)
    covered: dict[int, list[tuple[int, int]]] = {}
    for piece in pieces:
        cuts = sorted(data.draw(st.lists(st.integers(0, piece.rows), max_size=4)))
        covered[piece.unit] = list(zip(cuts[::2], cuts[1::2], strict=False))
    seen = Counter((unit, row) for unit, each in covered.items() for start, stop in each for row in range(start, stop))
    left = without(pieces, covered)
    assert rows_of(left) == rows_of(pieces) - seen
    assert all(piece.rows > 0 for piece in left)


@given(UNITS, st.integers(1, 9), st.integers(0, 300))
def test_gradients_are_taken_on_as_many_rows_as_asked_spread_evenly(units, batch_size, rows):
    pieces = pieces_of(units)
    total = sum(piece.rows for piece in pieces)
    chosen = gradient_batches(pieces, batch_size, rows)
    sizes = {
        (piece.unit, start): min(batch_size, piece.stop - start)
        for piece in pieces
        for start in range(0, piece.stop, batch_size)
    }
    assert chosen <= sizes.keys()
    taken = sum(sizes[place] for place in chosen)
    assert min(rows, total) <= taken < min(rows, total) + batch_size
    so_far = seen = 0
    for place, size in sizes.items():  # at no point of the data are they behind, or ahead by a batch
        seen += size
        so_far += size if place in chosen else 0
        due = Fraction(min(rows, total) * seen, total)
        assert due <= so_far < due + batch_size


@given(st.integers(0, 100), st.integers(1, 9))
def test_parts_of_a_number_add_up_and_differ_by_one_at_most(rows, world):
    parts = [share_of(rows, rank, world) for rank in range(world)]
    assert sum(parts) == rows
    assert max(parts) - min(parts) <= 1


def test_pieces_that_follow_on_each_other_become_one_and_others_do_not():
    assert joined([Piece(0, 0, 4)], Piece(0, 4, 9)) == [Piece(0, 0, 9)]
    assert joined([Piece(0, 0, 4)], Piece(0, 5, 9)) == [Piece(0, 0, 4), Piece(0, 5, 9)]
    assert joined([Piece(0, 0, 4)], Piece(1, 4, 9)) == [Piece(0, 0, 4), Piece(1, 4, 9)]


def test_batches_have_seeds_of_their_own():
    seeds = {seed_of_batch(unit, start) for unit in range(30) for start in range(0, 3000, 100)}
    assert len(seeds) == 900
    assert all(0 <= seed < 1 << 63 for seed in seeds)
