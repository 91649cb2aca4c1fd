"""The AUC is scikit-learn's, also under weights and ties; so is the LogLoss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss, roc_auc_score

from benchmarks.quality.ranking_metrics import RankedScores, auc, log_loss


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 4)), min_size=2, max_size=60),
)
def test_weighted_auc_with_ties_equals_sklearn(rows: list[tuple[bool, int, int]]) -> None:
    labels, scores, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    clicks = (weights * labels).sum()
    got = RankedScores(labels, scores).auc(weights)
    if clicks == 0 or clicks == weights.sum():
        assert np.isnan(got)
    else:
        assert got == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)


def test_auc_without_ties_equals_sklearn_weighted_and_not() -> None:
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, 5000), generator.normal(size=5000)
    weights = generator.integers(0, 4, 5000).astype(float)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert RankedScores(labels, scores).auc(weights) == pytest.approx(expected, abs=1e-12)


def test_integer_weights_equal_repeated_rows() -> None:
    generator = np.random.default_rng(1)
    labels, scores = generator.integers(0, 2, 300), generator.integers(0, 40, 300) / 40
    drawn = generator.integers(300, size=300)
    weights = np.bincount(drawn, minlength=300).astype(float)
    assert RankedScores(labels, scores).auc(weights) == pytest.approx(roc_auc_score(labels[drawn], scores[drawn]))


def test_log_loss_equals_sklearn_and_is_finite_at_zero_and_one() -> None:
    generator = np.random.default_rng(2)
    labels, probabilities = generator.integers(0, 2, 1000), generator.uniform(size=1000)
    assert log_loss(labels, probabilities) == pytest.approx(sklearn_log_loss(labels, probabilities), rel=1e-12)
    assert log_loss([1, 0], [0.0, 1.0]) == pytest.approx(-np.log(1e-7), rel=1e-6)
