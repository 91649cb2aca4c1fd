"""Adding: parts of the rows, held and ordered in any way, have the statistics of all rows; others are refused."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from afm_fx.calibration.moments import Moments
from afm_fx.calibration.statistics import Share, Statistics, missing_shares
from afm_fx.errors import CalibrationError
from tests.calibration.some_statistics import MANY, WIDTHS, all_rows, assert_whole, parts_of, reloaded, statistics_of

PARTS = 4
ORDERS = st.lists(st.permutations(list(WIDTHS)), min_size=PARTS, max_size=PARTS)


@settings(max_examples=30)
@given(
    owners=st.lists(st.integers(0, PARTS - 1), min_size=MANY, max_size=MANY),
    orders=ORDERS,
    from_files=st.sets(st.integers(0, PARTS - 1)),
    turn=st.permutations(range(PARTS)),
)
def test_loaded_and_other_parts_in_any_order_add_up_to_the_whole(tmp_path_factory, owners, orders, from_files, turn):
    folder = tmp_path_factory.getbasetemp()
    parts = parts_of(owners, orders)
    held = [reloaded(each, folder / "part") if part in from_files else each for part, each in enumerate(parts)]
    total = functools.reduce(Statistics.__add__, [held[part] for part in turn])
    assert total.batches == len(set(owners))
    assert_whole(total)
    assert_whole(reloaded(total, folder / "total"))


def test_sums_are_exact_where_means_are_large_against_the_spread():
    rows = {**all_rows(), "table": all_rows()["table"] + 1e7}
    half = torch.arange(MANY) < MANY // 3
    one, other = (statistics_of({name: each[mask] for name, each in rows.items()}) for mask in (half, ~half))
    exact = rows["table"] - rows["table"].mean(0)
    torch.testing.assert_close((one + other).moments["table"].scatter, exact.T @ exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"origin": {"the model": "other"}}, "differ in the model"),
        ({"origin": {"the model": "m", "sensitivity_rows": "3"}}, "differ in sensitivity_rows"),
        ({"moments": {name: Moments.empty(3) for name in WIDTHS}}, "differ in sites$"),
        ({"activations": {}}, "differ in activations"),
        ({"traffic": {}}, "differ in tables"),
    ],
)
def test_statistics_of_other_models_or_options_are_refused(change, says):
    own = statistics_of(all_rows())
    with pytest.raises(CalibrationError, match=f"different models or options cannot be added: they {says}"):
        _ = own + replace(own, **change)


def test_sites_that_are_not_in_both_are_named():
    own = statistics_of(all_rows())
    with pytest.raises(CalibrationError, match=r"sites \['Z', 'a layer', 'layer', 'tables'\] are not in both"):
        _ = own + replace(own, moments={"table": own.moments["table"]})


def test_no_share_counts_twice_and_missing_ones_are_known(tmp_path):
    log, other = [Share(index, 3, "log") for index in range(3)], Share(0, 2, "other")
    own = statistics_of(all_rows())
    parts = [reloaded(replace(own, shares=frozenset([share])), tmp_path / "part") for share in (*log, other)]
    some = parts[2] + parts[0] + parts[3]
    assert missing_shares(some.shares) == [log[1], Share(1, 2, "other")]
    assert missing_shares((some + parts[1]).shares) == [Share(1, 2, "other")]
    with pytest.raises(CalibrationError, match="share 2/3 of log is in both"):
        _ = some + parts[2]
    with pytest.raises(CalibrationError, match="rows would count twice"):
        _ = some + replace(own, shares=frozenset([Share(1, 2, "log")]))
