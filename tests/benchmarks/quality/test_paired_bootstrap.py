"""The bootstrap is paired, as wide as theory says, and the same again with the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from afm_fx.errors import UserError
from benchmarks.quality.paired_bootstrap import AucDifference, bootstrap_auc_differences
from benchmarks.quality.ranking_metrics import RankedScores


def test_pairing_makes_the_interval_far_narrower_than_that_of_unrelated_models() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 4000)
    first = labels + generator.normal(size=4000)
    scores = {
        "first": first,
        "near": first + 0.05 * generator.normal(size=4000),
        "unrelated": labels + generator.normal(size=4000),
    }
    near, unrelated = bootstrap_auc_differences(
        labels, scores, [("first", "near"), ("first", "unrelated")], resamples=200
    )
    assert near.high - near.low < (unrelated.high - unrelated.low) / 4
    assert near.low <= near.difference <= near.high
    assert near.difference == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, scores["near"]))


def test_interval_has_the_width_that_theory_gives_for_one_model() -> None:
    """Against a constant score (AUC 1/2 in every resample) the interval is that of one AUC: Hanley and McNeil 1982."""
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 2, 3000)
    scores = labels + generator.normal(size=3000)
    (result,) = bootstrap_auc_differences(
        labels, {"model": scores, "constant": np.zeros(3000)}, [("model", "constant")], resamples=800
    )
    area, clicks = roc_auc_score(labels, scores), labels.sum()
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (clicks - 1) * (q1 - area**2) + (3000 - clicks - 1) * (q2 - area**2)) / (
        clicks * (3000 - clicks)
    )
    assert result.high - result.low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.15)
    assert result.difference == pytest.approx(area - 0.5)


def test_difference_is_written_with_sign_and_interval_and_without_negative_zero() -> None:
    assert str(AucDifference("a", "b", -0.00123, -0.002, 0.00001)) == "-0.0012 [-0.0020,+0.0000]"
    assert str(AucDifference("a", "b", -1e-9, -1e-9, 1e-9)) == "+0.0000 [+0.0000,+0.0000]"


def test_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 2, 500)
    scores = {"a": generator.normal(size=500), "b": generator.normal(size=500)}
    runs = [bootstrap_auc_differences(labels, scores, [("a", "b")], resamples=50, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda: bootstrap_auc_differences([0, 1], {"a": [0, 1]}, [("a", "b")]), "'b'"),
        (lambda: bootstrap_auc_differences([1, 1], {"a": [0, 1]}, [("a", "a")]), "non-clicks"),
        (lambda: bootstrap_auc_differences([0, 1], {"a": [0, 1]}, [("a", "a")], resamples=0), "resamples 0"),
        (lambda: RankedScores([0, 1], [0.0, float("nan")]), "score 1 is NaN"),
        (lambda: RankedScores([0, 1], [0.0]), "one length"),
    ],
)
def test_bad_input_names_the_culprit(call: object, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        call()  # type: ignore[operator]
