"""The comparison measures what it says, on equal parameter counts, and reports what cannot be reached."""

from __future__ import annotations

import pytest
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

import afm_fx
from benchmarks.common.ctr_models import ModelConfig, build_model
from benchmarks.datasets import CtrDataset
from benchmarks.quality.comparison import (
    AFM,
    AFM_UNIFORM,
    MEASURED,
    WEIGHT_SVD,
    WEIGHT_SVD_UNIFORM,
    Comparison,
    Setting,
    Variant,
    compare,
    default_settings,
)
from benchmarks.quality.training import TrainingConfig, predict, train
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
    return compare(model, data, SETTINGS, resamples=100, seed=1, random_plans=8)


def test_original_is_measured_on_the_test_rows(comparison: Comparison, trained: tuple[nn.Module, CtrDataset]) -> None:
    model, data = trained
    scores = predict(model, data.test)
    assert comparison.auc == pytest.approx(roc_auc_score(data.test.labels, scores), abs=1e-6)
    assert comparison.log_loss == pytest.approx(log_loss(data.test.labels, scores), abs=1e-6)
    assert comparison.parameters == sum(parameter.numel() for parameter in model.parameters())


def named(comparison: Comparison, key: str) -> Variant:
    (variant,) = [variant for variant in comparison.variants if f"{variant.setting} / {variant.method}" == key]
    return variant


def test_a_measured_plan_is_compared_with_the_better_peer_of_its_setting(comparison: Comparison) -> None:
    measured = [variant for variant in comparison.variants if variant.method == MEASURED]
    assert [variant.setting for variant in measured] == ["half", "tables rank 1"]
    for variant, peers in zip(measured, ({AFM_UNIFORM, WEIGHT_SVD_UNIFORM}, {AFM, WEIGHT_SVD}), strict=True):
        assert variant.to_peer is not None
        assert variant.logit_error is not None
        peer = named(comparison, variant.to_peer.second)
        assert (peer.setting, peer.method in peers) == (variant.setting, True)
        same = [each for each in comparison.variants if each.setting == variant.setting and each.method in peers]
        assert peer.auc == max(each.auc for each in same)
        assert variant.to_peer.difference == pytest.approx(variant.auc - peer.auc, abs=1e-12)
        assert variant.to_original.difference == pytest.approx(variant.auc - comparison.auc, abs=1e-12)


@pytest.mark.thorough
def test_uniform_ranks_use_the_budget_up(comparison: Comparison) -> None:
    uniform = [variant for variant in comparison.variants if variant.method in {AFM_UNIFORM, WEIGHT_SVD_UNIFORM}]
    assert len(uniform) == 2
    assert all(0.4 < variant.share <= 0.5 for variant in uniform)


def test_predicted_errors_order_random_plans_as_measured_ones_do(comparison: Comparison) -> None:
    assert comparison.random_plans == 8
    assert comparison.rank_correlation is not None
    assert 0.5 < comparison.rank_correlation <= 1


def test_peers_are_compared_with_the_original_only(comparison: Comparison) -> None:
    others = [variant for variant in comparison.variants if variant.method != MEASURED]
    assert others
    assert all(variant.to_peer is None for variant in others)


def test_budgets_hold_and_change_the_scores(comparison: Comparison) -> None:
    halves = [variant for variant in comparison.variants if variant.setting == "half"]
    assert halves
    for variant in halves:
        assert variant.parameters <= 0.5 * comparison.parameters
        assert variant.share == variant.parameters / comparison.parameters
        assert variant.log_loss != comparison.log_loss


def test_a_budget_that_cannot_be_reached_is_reported_with_its_reason(comparison: Comparison) -> None:
    assert [(refusal.setting, refusal.method) for refusal in comparison.refusals] == [
        ("nothing", method) for method in (MEASURED, AFM_UNIFORM, WEIGHT_SVD_UNIFORM, AFM, WEIGHT_SVD)
    ]
    assert all("smallest" in each.reason for each in comparison.refusals if "uniform" not in each.method)
    assert not [variant for variant in comparison.variants if variant.setting == "nothing"]


def test_default_settings_are_the_budgets_and_uniform_ranks() -> None:
    labels = [setting.label for setting in default_settings((0.3,))]
    assert labels == ["budget 0.3", "tables rank 1", "tables rank 2", "Linears rank 4"]
