"""Generated click data: deterministic, of the asked shape, with a truth of known rank."""

from __future__ import annotations

import numpy as np
import pytest

from afm_fx.errors import UserError
from examples.generated_clicks import ClickGenerator, _Truth

SMALL = ClickGenerator(sparse_fields=6, dense_fields=3, largest_vocabulary=200)


def test_the_default_has_the_shape_of_the_public_display_ad_logs():
    data = ClickGenerator().draw(100)
    assert data.ids.shape == (100, 26)
    assert data.dense.shape == (100, 13)
    assert data.ids.dtype == np.int64
    assert data.dense.dtype == np.float32
    assert set(np.unique(data.clicks)) <= {0.0, 1.0}


def test_equal_arguments_give_equal_rows_and_other_parts_other_rows():
    first, again, other = SMALL.draw(500), SMALL.draw(500), SMALL.draw(500, part=1)
    np.testing.assert_array_equal(first.ids, again.ids)
    np.testing.assert_array_equal(first.dense, again.dense)
    np.testing.assert_array_equal(first.clicks, again.clicks)
    assert not np.array_equal(first.ids, other.ids)


def test_parts_share_one_truth():
    left, right = _Truth.of(SMALL), _Truth.of(SMALL)
    data = SMALL.draw(50, part=3)
    logits = left.logits(data.ids, data.dense)
    np.testing.assert_array_equal(logits, right.logits(data.ids, data.dense))
    np.testing.assert_allclose(data.probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-12)


def test_ids_stay_inside_their_vocabularies_and_the_first_id_is_the_commonest():
    data = SMALL.draw(20_000)
    for column, size in zip(data.ids.T, SMALL.vocabulary_sizes, strict=True):
        counts = np.bincount(column, minlength=size)
        assert len(counts) == size
        assert counts.argmax() == 0


def test_id_shares_follow_the_zipf_law():
    data = SMALL.draw(100_000)
    counts = np.bincount(data.ids[:, 0], minlength=SMALL.vocabulary_sizes[0])
    assert counts[0] / counts[3] == pytest.approx(4**SMALL.zipf_exponent, rel=0.05)


@pytest.mark.parametrize("click_rate", [0.05, 0.25, 0.6])
def test_the_click_rate_is_the_one_asked_for(click_rate):
    data = ClickGenerator(sparse_fields=6, dense_fields=3, largest_vocabulary=200, click_rate=click_rate).draw(50_000)
    assert data.probabilities.mean() == pytest.approx(click_rate, abs=0.01)
    assert data.clicks.mean() == pytest.approx(click_rate, abs=0.01)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_interactions_between_two_fields_have_the_planted_rank(rank):
    generator = ClickGenerator(sparse_fields=2, dense_fields=0, largest_vocabulary=40, rank=rank)
    truth = _Truth.of(generator)
    first, second = generator.vocabulary_sizes
    pairs = np.stack(np.meshgrid(np.arange(first), np.arange(second), indexing="ij"), axis=-1).reshape(-1, 2)
    logits = truth.logits(pairs, np.zeros((len(pairs), 0), np.float32)).reshape(first, second)
    interactions = logits - logits.mean(0, keepdims=True) - logits.mean(1, keepdims=True) + logits.mean()
    assert np.linalg.matrix_rank(interactions, tol=1e-9 * np.linalg.norm(interactions)) == rank


def test_the_truth_ranks_clicks_well_but_not_perfectly():
    metrics = pytest.importorskip("sklearn.metrics")
    data = ClickGenerator().draw(20_000)
    best = metrics.roc_auc_score(data.clicks, data.probabilities)
    assert 0.78 < best < 0.86


@pytest.mark.parametrize(
    "wrong", [{"sparse_fields": 0}, {"rank": 0}, {"largest_vocabulary": 3}, {"click_rate": 0.0}, {"click_rate": 1.5}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError):
        ClickGenerator(**wrong)


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="at least 1 row"):
        SMALL.draw(0)
