"""A paired comparison is the difference of the metrics, with the spread that resampling finds."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from afm_fx.measure.worsening import Worsening, auc, auc_drop, log_loss_rise, placements
from benchmarks.quality.paired_bootstrap import bootstrap_auc_differences

ROWS = 3000


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    before = generator.normal(size=ROWS) - 1
    labels = (generator.uniform(size=ROWS) < 1 / (1 + np.exp(-before))).astype(float)
    return labels, before, np.round(before + 0.5 * generator.normal(size=ROWS), 1)


def test_the_auc_drop_is_that_of_sklearn_and_its_spread_that_of_a_paired_bootstrap(drawn) -> None:
    labels, before, after = drawn
    drop = auc_drop(*drawn)
    assert drop.estimate == pytest.approx(roc_auc_score(labels, before) - roc_auc_score(labels, after), abs=1e-12)
    (sampled,) = bootstrap_auc_differences(labels, {"before": before, "after": after}, [("before", "after")])
    assert drop.bound(0.975) - drop.bound(0.025) == pytest.approx(sampled.high - sampled.low, rel=0.1)
    assert drop.bound(0.975) == pytest.approx(sampled.high, abs=0.1 * (sampled.high - sampled.low))


def test_the_log_loss_rise_is_that_of_sklearn_and_its_spread_that_of_a_paired_bootstrap(drawn) -> None:
    labels, before, after = drawn
    rise = log_loss_rise(*drawn)
    losses = [log_loss(labels, 1 / (1 + np.exp(-logits))) for logits in (before, after)]
    assert rise.estimate == pytest.approx(losses[1] - losses[0], abs=1e-12)
    rows = np.random.default_rng(1).integers(ROWS, size=(400, ROWS))
    resampled = [log_loss_rise(labels[each], before[each], after[each]).estimate for each in rows]
    assert rise.standard_error == pytest.approx(np.std(resampled), rel=0.1)


def test_equal_models_are_equal_with_certainty_and_pairing_narrows_the_bound(drawn) -> None:
    labels, before, after = drawn
    assert auc_drop(labels, before, before) == Worsening(0.0, 0.0)
    unrelated = auc_drop(labels, before, np.random.default_rng(2).normal(size=ROWS))
    assert auc_drop(labels, before, before + 0.01 * after).standard_error < unrelated.standard_error / 20


def test_the_bound_holds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    truth = NormalDist().cdf(1 / np.sqrt(2)) - NormalDist().cdf(1 / np.sqrt(2 * 1.25))
    held = 0
    for _ in range(400):
        labels = np.repeat([0.0, 1.0], 150)
        before = labels + generator.normal(size=300)
        held += auc_drop(labels, before, before + 0.5 * generator.normal(size=300)).bound(0.9) >= truth
    assert 0.86 < held / 400 < 0.94


@given(rows=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_placements_are_shares_of_the_other_class_beaten(rows: list[tuple[bool, int]]) -> None:
    labels, scores = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if labels.min() == labels.max():
        return
    beats = np.where(scores[:, None] == scores[None, :], 0.5, scores[:, None] > scores[None, :])
    table = beats[labels == 1][:, labels == 0]
    clicks, non_clicks = placements(labels, scores)
    assert auc(labels, scores) == pytest.approx(table.mean(), abs=1e-12)
    np.testing.assert_allclose(clicks, table.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(non_clicks, table.mean(axis=0), atol=1e-12)
