"""Recovery is measured at every budget beside the original, tuned alike, and written as text and data."""

from __future__ import annotations

import json

import pytest

import afm_fx
from afm_fx.io import builtins_of
from benchmarks.common.ctr_models import ModelConfig, build_model
from benchmarks.common.results import markdown
from benchmarks.quality.comparison import ORIGINAL
from benchmarks.quality.recovery import CONTROL, Line, Schedule, cells, experiment, parts
from benchmarks.quality.training import predict
from tests.benchmarks.ctr_data import generated_dataset

pytest.importorskip("deepctr_torch")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    dataset = generated_dataset(1200)
    model = build_model("DeepFM", dataset, ModelConfig(embedding_dim=4, hidden_units=(12, 12))).eval()
    folder = tmp_path_factory.mktemp("kept")
    schedule = Schedule(epochs=2, epochs_without_labels=1, batch_size=128)
    measured = experiment(model, dataset, [0.7], schedule, resamples=10, folder=folder)
    assert len(list(folder.iterdir())) == 3
    assert predict(model, dataset.test).shape == (120,)
    again = experiment(model, dataset, [0.7], schedule, resamples=10, folder=folder)
    assert again == measured  # seconds too: every recovery came from its file
    return measured


def test_every_budget_has_three_lines_and_the_control_comes_last(lines: list[Line]) -> None:
    assert [line.name for line in lines] == [
        ORIGINAL,
        "budget 0.7, compressed",
        "budget 0.7, recovered without labels",
        "budget 0.7, recovered with labels",
        CONTROL,
    ]
    whole, compressed, distilled, labelled, control = lines
    assert compressed.parameters == distilled.parameters == labelled.parameters <= 0.7 * whole.parameters
    assert whole.parameters == control.parameters
    assert whole.to_original is None
    reports = [line.recovery for line in (distilled, labelled, control)]
    assert all(isinstance(report, afm_fx.recovery.RecoveryReport) for report in reports)
    assert [report and report.settings.label_weight is not None for report in reports] == [False, True, True]
    assert [report and report.settings.trainable for report in reports] == ["factors", "factors", "all"]
    assert control.auc > whole.auc  # which was not trained at all


def test_text_and_data_say_the_same(lines: list[Line]) -> None:
    document = json.loads(json.dumps(lines, default=builtins_of))
    assert [line["auc"] for line in document] == [line.auc for line in lines]
    page = markdown(parts(generated_dataset(600), lines))
    for row in cells(lines):
        assert "| " + " | ".join(row) + " |" in page
    assert "- without labels: 1 epochs, Adam from 0.003." in page
    assert "- labels 90% of the loss: 2 epochs, Adam from 0.003." in page
