"""Traffic: rows counted as they are looked up, and estimates of what was not."""

from __future__ import annotations

import pytest
import torch

import afm_fx
from afm_fx.calibration.traffic import PARTIAL, Traffic
from afm_fx.errors import CalibrationError
from tests.fast_capture import fast_capture
from tests.graphs import Tower, tower_batch


def counts(*values: float) -> Traffic:
    return Traffic(torch.tensor(values, dtype=torch.float64))


def test_every_lookup_is_counted_once_in_any_batching() -> None:
    program = fast_capture(Tower(), tower_batch(4))
    ids, dense = tower_batch(50)
    for sizes in ([50], [7, 43], [1] * 50):
        traffic = afm_fx.calibrate(program, list(zip(ids.split(sizes), dense.split(sizes), strict=True))).traffic
        assert set(traffic) == {"tables.0", "tables.1", "tables.2"}
        for field in range(3):
            rows = Tower().looked_up()[field].num_embeddings
            assert traffic[f"tables.{field}"].counts.tolist() == torch.bincount(ids[:, field], minlength=rows).tolist()


def test_an_index_from_the_end_counts_for_its_row_and_a_bag_is_marked() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.bag = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.EmbeddingBag(4, 3, mode="sum")
            self.out = torch.nn.Linear(3, 1)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.rows[ids[:, 0] - 5] + self.bag(ids[:, 1:]))

    ids = torch.tensor([[0, 1, 1], [4, 0, 3]])
    traffic = afm_fx.calibrate(afm_fx.capture(Both(), ids), [ids]).traffic
    assert traffic["rows"].counts.tolist() == [1, 0, 0, 0, 1]
    assert traffic["bag"].counts.tolist() == [1, 2, 0, 1]
    assert (traffic["rows"].pooled, traffic["bag"].pooled) == (False, True)


def test_the_expected_share_weighs_rows_seen_once_and_rows_not_seen() -> None:
    assert counts(1, 4, 1, 0).unseen_share == pytest.approx((1 - PARTIAL) * 2 / 6 + PARTIAL / 4)
    assert counts(1, 4, 1).unseen_share == 0.0
    assert counts(0, 0).unseen_share == 1.0


def test_rows_seen_once_tell_the_share_of_the_next_sample_that_is_new() -> None:
    generator = torch.Generator().manual_seed(1)
    chances = 1.0 / torch.arange(1, 20_001)
    drawn = [torch.multinomial(chances, 20_000, replacement=True, generator=generator) for _ in range(2)]
    first, second = (Traffic(torch.bincount(ids, minlength=20_000).double()) for ids in drawn)
    share = (first.unseen_share - PARTIAL * (1 - first.rows_seen / first.rows)) / (1 - PARTIAL)
    missed = float(second.counts[~first.seen].sum()) / second.lookups
    assert share == pytest.approx(missed, rel=0.05)


def test_tables_that_grow_keep_their_counts_and_those_that_shrink_are_refused() -> None:
    assert counts(3, 1).grown_to(3).counts.tolist() == [3, 1, 0]
    with pytest.raises(CalibrationError, match="2 rows of a table were counted that has 1"):
        counts(3, 1).grown_to(1)
