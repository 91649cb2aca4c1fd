"""The comparison measures what it says, on equal parameter counts, and reports what cannot be reached."""

from __future__ import annotations

import pytest
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

import afm_fx
from benchmarks.ctr_models import ModelConfig, build_model
from benchmarks.datasets import CtrDataset
from benchmarks.quality_comparison import (
    AFM,
    WEIGHT_SVD,
    WEIGHT_SVD_SAME_RANKS,
    Comparison,
    Setting,
    Variant,
    compare,
    default_settings,
)
from benchmarks.training import TrainingConfig, predict, train
from tests.benchmarks.ctr_data import generated_dataset

pytest.importorskip("deepctr_torch")
TABLE_WIDTH = 8
SETTINGS = [
    Setting("half", afm_fx.Budget(parameters=0.5)),
    Setting("nothing", afm_fx.Budget(parameters=0.001)),
    Setting("tables rank 1", afm_fx.Fixed(embedding=1, linear=None)),
]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, CtrDataset]:
    data = generated_dataset()
    model = build_model("DeepFM", data, ModelConfig(TABLE_WIDTH, (32, 32), l2_embedding=1e-6, dropout=0.0))
    train(model, data.train, data.validation, TrainingConfig(max_epochs=4, batch_size=128, learning_rate=1e-2))
    return model, data


@pytest.fixture(scope="module")
def comparison(trained: tuple[nn.Module, CtrDataset]) -> Comparison:
    model, data = trained
    return compare(model, data, SETTINGS, calibration_rows=2000, resamples=100, seed=1)


def test_original_is_measured_on_the_test_rows(comparison: Comparison, trained: tuple[nn.Module, CtrDataset]) -> None:
    model, data = trained
    scores = predict(model, data.test)
    assert comparison.auc == pytest.approx(roc_auc_score(data.test.labels, scores), abs=1e-6)
    assert comparison.log_loss == pytest.approx(log_loss(data.test.labels, scores), abs=1e-6)
    assert comparison.parameters == sum(parameter.numel() for parameter in model.parameters())


def named(comparison: Comparison, key: str) -> Variant:
    (variant,) = [variant for variant in comparison.variants if f"{variant.setting} / {variant.method}" == key]
    return variant


def test_methods_are_compared_under_one_setting_and_at_equal_ranks(comparison: Comparison) -> None:
    measured = [variant for variant in comparison.variants if variant.method == AFM]
    assert [variant.setting for variant in measured] == ["half", "tables rank 1"]
    for variant in measured:
        assert variant.to_svd is not None
        assert variant.to_svd_same_ranks is not None
        own = named(comparison, variant.to_svd.second)
        same_ranks = named(comparison, variant.to_svd_same_ranks.second)
        assert (own.setting, own.method) == (variant.setting, WEIGHT_SVD)
        assert same_ranks.setting == variant.setting
        assert same_ranks.method in {WEIGHT_SVD, WEIGHT_SVD_SAME_RANKS}
        offsets = variant.parameters - same_ranks.parameters
        assert 0 <= offsets <= 2 * TABLE_WIDTH, "only the offsets of AFM's centred tables may differ"
        assert variant.to_svd.difference == pytest.approx(variant.auc - own.auc, abs=1e-12)
        assert variant.to_svd_same_ranks.difference == pytest.approx(variant.auc - same_ranks.auc, abs=1e-12)
        assert variant.to_original.difference == pytest.approx(variant.auc - comparison.auc, abs=1e-12)


def test_weight_svd_is_compared_with_the_original_only(comparison: Comparison) -> None:
    others = [variant for variant in comparison.variants if variant.method != AFM]
    assert others
    assert all(variant.to_svd is None and variant.to_svd_same_ranks is None for variant in others)


def test_budgets_hold_and_change_the_scores(comparison: Comparison) -> None:
    halves = [variant for variant in comparison.variants if variant.setting == "half"]
    assert halves
    for variant in halves:
        assert variant.parameters <= 0.5 * comparison.parameters
        assert variant.share == variant.parameters / comparison.parameters
        assert variant.log_loss != comparison.log_loss


def test_a_budget_that_cannot_be_reached_is_reported_with_its_reason(comparison: Comparison) -> None:
    assert [(refusal.setting, refusal.method) for refusal in comparison.refusals] == [
        ("nothing", WEIGHT_SVD),
        ("nothing", AFM),
    ]
    assert all("smallest" in refusal.reason for refusal in comparison.refusals)
    assert not [variant for variant in comparison.variants if variant.setting == "nothing"]


def test_default_settings_are_the_budgets_and_uniform_ranks() -> None:
    labels = [setting.label for setting in default_settings((0.3,))]
    assert labels == ["budget 0.3", "tables rank 1", "tables rank 2", "Linears rank 4"]
