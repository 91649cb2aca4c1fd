"""Merging: any partition of the rows gives the statistics of all rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from afm_fx.errors import CalibrationError
from afm_fx.moments import Moments, Spread
from afm_fx.row_sample import RowSample
from afm_fx.sensitivity import Sensitivity
from afm_fx.statistics import Statistics
from afm_fx.statistics_merge import ROWS, first_sums, merged, second_sums, sent_bytes
from afm_fx.traffic import Traffic
from tests.graphs import correlated

WIDTHS = {"table": 3, "layer": 5}
MANY, SAMPLED, IDS = 60, 7, 11


def statistics_of(rows: dict[str, Tensor]) -> Statistics:
    """Every part of statistics, of some rows: those of one process."""
    count = len(rows["keys"])
    smallest = rows["keys"].argsort()[:SAMPLED]
    return Statistics(
        {name: Moments.of(rows[name]) if count else Moments.empty(width) for name, width in WIDTHS.items()},
        count,
        1 if count else 0,
        {"layer": Sensitivity(count, rows["layer"].T @ rows["layer"], 2 * rows["layer"].T @ rows["layer"])},
        {"layer": Spread.of(rows["layer"]) if count else Spread(0, torch.zeros(5).double(), torch.zeros(5).double())},
        {"table": Traffic(torch.bincount(rows["ids"], minlength=IDS).double())},
        RowSample(SAMPLED, rows["keys"][smallest], {"ids": rows["ids"][smallest]}) if count else None,
    )


@pytest.fixture(scope="module")
def rows() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return {
            "table": correlated(MANY, 3, 2, mean=1e4),
            "layer": correlated(MANY, 5, 2),
            "ids": torch.randint(0, IDS, (MANY,), generator=generator),
            "keys": torch.rand(MANY, generator=generator, dtype=torch.float64),
        }


@given(st.lists(st.integers(0, 4), min_size=MANY, max_size=MANY))
def test_any_partition_of_the_rows_has_the_statistics_of_all(rows, owners):
    owner = torch.tensor(owners)
    parts = [statistics_of({name: each[owner == part] for name, each in rows.items()}) for part in range(5)]
    found, whole = merged(parts), statistics_of(rows)
    assert found.rows == MANY
    assert found.batches == sum(part.batches for part in parts)
    for name, moments in whole.moments.items():
        assert found.moments[name].count == MANY
        torch.testing.assert_close(found.moments[name].mean, moments.mean, rtol=1e-12, atol=1e-12)
        scale = float(moments.scatter.abs().max())
        torch.testing.assert_close(found.moments[name].scatter, moments.scatter, rtol=0, atol=1e-10 * scale)
    torch.testing.assert_close(found.activations["layer"].squares, whole.activations["layer"].squares)
    torch.testing.assert_close(found.sensitivities["layer"].gradient, whole.sensitivities["layer"].gradient)
    torch.testing.assert_close(found.sensitivities["layer"].consumer, whole.sensitivities["layer"].consumer)
    assert found.sensitivities["layer"].rows == MANY
    assert torch.equal(found.traffic["table"].counts, whole.traffic["table"].counts)
    assert torch.equal(found.sample.keys, whole.sample.keys)
    assert torch.equal(found.sample.columns["ids"], whole.sample.columns["ids"])


def test_merging_agrees_with_pairwise_sums_where_means_are_large_against_the_spread(rows):
    shifted = {**rows, "table": rows["table"] + 1e7}
    half = torch.arange(MANY) < MANY // 3
    one, other = (statistics_of({name: each[mask] for name, each in shifted.items()}) for mask in (half, ~half))
    pairwise, found = (one + other).moments["table"], merged([one, other]).moments["table"]
    exact = shifted["table"] - shifted["table"].mean(0)
    for each in (pairwise, found):
        torch.testing.assert_close(each.scatter, exact.T @ exact, rtol=1e-6, atol=1e-6)


def test_tables_that_share_their_counts_share_them_afterwards(rows):
    own = statistics_of(rows)
    both = Statistics(own.moments, own.rows, own.batches, traffic=dict.fromkeys(WIDTHS, own.traffic["table"]))
    found = merged([both, both])
    assert found.traffic["table"] is found.traffic["layer"]
    assert torch.equal(found.traffic["table"].counts, 2 * own.traffic["table"].counts)


def test_what_is_sent_is_counted_by_site(rows):
    own = statistics_of(rows)
    first = first_sums(own)
    second = second_sums(own, first)
    counted = sent_bytes(own)
    assert counted.keys() == {ROWS, "table", "layer"}
    assert sum(counted.values()) == 8 * (len(first) + len(second) + IDS)
    assert counted["table"] == 8 * (1 + 3 + 3 * 4 // 2 + IDS)


def test_statistics_of_different_models_are_not_merged(rows):
    own = statistics_of(rows)
    other = Statistics({"table": Moments.empty(4)}, 0, 0)
    with pytest.raises(CalibrationError, match="different models"):
        merged([own, other])
    with pytest.raises(CalibrationError, match="no statistics"):
        merged([])
