"""Moments: any split, order and merge gives what numpy gives on the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from afm_fx.calibration import moments as moments_module
from afm_fx.calibration.moments import Moments, gram, table_moments
from afm_fx.errors import CalibrationError

TIGHT = 1e-10


def reference(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    array = rows.double().numpy()
    return array.mean(axis=0), np.atleast_2d(np.cov(array, rowvar=False, bias=True))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(2, 60),
    width=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    mean_over_spread=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_any_split_in_any_order_equals_numpy_on_the_whole(
    rows: int, width: int, cuts: list[int], mean_over_spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(rows, width, generator=generator, dtype=torch.float64) + mean_over_spread
    edges = sorted({0, rows, *(min(cut, rows) for cut in cuts)})
    parts = [data[first:end] for first, end in itertools.pairwise(edges)]
    order = torch.randperm(len(parts), generator=generator).tolist()
    total = Moments.empty(width)
    for position in order:
        total = total + Moments.of(parts[position])
    mean, covariance = reference(data)
    scale = np.abs(covariance).max()
    assert total.count == rows
    np.testing.assert_allclose(total.mean.numpy(), mean, rtol=TIGHT, atol=TIGHT)
    np.testing.assert_allclose(total.covariance.numpy(), covariance, rtol=0, atol=TIGHT * max(scale, 1.0))


def test_merging_parts_of_parts_equals_numpy_at_a_mean_of_ten_thousand_spreads() -> None:
    data = torch.randn(4096, 20, dtype=torch.float64) * 0.1 + 1e3
    quarters = [Moments.of(part) for part in data.chunk(4)]
    merged = (quarters[3] + quarters[0]) + (quarters[2] + quarters[1])
    _, covariance = reference(data)
    np.testing.assert_allclose(merged.covariance.numpy(), covariance, rtol=0, atol=TIGHT * np.abs(covariance).max())


def test_float32_products_stay_close_where_the_raw_second_moment_would_cancel() -> None:
    data = (torch.randn(5000, 80) + 1e4).float()
    moments = Moments.of(data, torch.float32)
    _, covariance = reference(data)
    error = np.abs(moments.covariance.numpy() - covariance).max()
    raw = (data.T @ data / len(data) - torch.outer(data.mean(0), data.mean(0))).double().numpy()
    assert error < 1e-5 * np.abs(covariance).max()
    assert np.abs(raw - covariance).max() > 100 * error


def test_second_moment_is_about_zero() -> None:
    data = torch.randn(50, 4, dtype=torch.float64) + 3
    torch.testing.assert_close(Moments.of(data).second_moment(), data.mT @ data / 50, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("width", [3, 64, 65, 200])
def test_gram_is_the_product_with_the_own_transpose(width: int) -> None:
    rows = torch.randn(30, width, dtype=torch.float64)
    torch.testing.assert_close(gram(rows), rows.mT @ rows, rtol=1e-12, atol=1e-12)


def test_moments_of_nothing_are_neutral_and_have_no_covariance() -> None:
    data = Moments.of(torch.randn(5, 2, dtype=torch.float64))
    assert (Moments.empty(2) + data) is data
    assert (data + Moments.of(torch.empty(0, 2))) is data
    with pytest.raises(CalibrationError, match="no rows"):
        _ = Moments.empty(2).covariance


def test_moments_of_different_widths_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="2 and of 3"):
        _ = Moments.empty(2) + Moments.empty(3)


def test_weighted_moments_are_those_of_repeated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "ROWS_PER_BLOCK", 4)
    left, right = torch.randn(11, 3) + 5, torch.randn(11, 2)
    weights = torch.tensor([2, 0, 1, 0, 0, 0, 0, 0, 3, 1, 1])
    found = table_moments([left, right], weights)
    repeated = torch.cat([left, right], dim=1).double().repeat_interleave(weights, dim=0)
    expected = Moments.of(repeated)
    assert found.count == expected.count == 8
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-10, atol=1e-12)


def test_weights_of_zero_give_the_moments_of_no_rows() -> None:
    assert table_moments([torch.randn(3, 2)], torch.zeros(3)).count == 0
