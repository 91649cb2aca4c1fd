"""Moments of table rows under weights: those of the rows, each repeated."""

from __future__ import annotations

import pytest
import torch

import afm_fx.table_moments
from afm_fx.moments import Moments
from afm_fx.table_moments import table_moments


def test_weighted_moments_are_those_of_repeated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afm_fx.table_moments, "ROWS_PER_BLOCK", 4)
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
