"""Cold rows are those that hold an id left out, and calibration does not see them."""

from __future__ import annotations

from typing import Any

import pytest

import afm_fx
from afm_fx.errors import UserError
from benchmarks.common.ctr_models import ModelConfig, build_model
from benchmarks.quality.cold_ids import ALL_IDS, COLD, LEFT_OUT, WARM, ColdLine, experiment, table
from tests.benchmarks.ctr_data import generated_dataset

pytest.importorskip("deepctr_torch")
OPTIONS: dict[str, Any] = {"fields": 1, "share": 0.3, "resamples": 10, "seed": 3}


def measured(monkeypatch: pytest.MonkeyPatch) -> tuple[list[ColdLine], list[set[float]]]:
    dataset = generated_dataset(1500)
    sizes = [field.vocabulary_size for field in dataset.sparse]
    largest = sizes.index(max(sizes))
    seen: list[set[float]] = []
    calibrate = afm_fx.calibrate

    def watched(program, batches, **options):
        given = list(batches)
        seen.append({float(each) for (inputs,) in given for each in inputs[:, largest]})
        return calibrate(program, given, **options)

    monkeypatch.setattr(afm_fx, "calibrate", watched)
    model = build_model("DeepFM", dataset, ModelConfig(embedding_dim=4, hidden_units=(12, 12))).eval()
    return experiment(model, dataset, [0.6], **OPTIONS), seen


def test_ids_are_left_out_of_calibration_and_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, (everything, without) = measured(monkeypatch)
    assert without < everything
    assert [(line.rows, line.calibrated_on) for line in lines] == [
        (WARM, ALL_IDS), (WARM, LEFT_OUT), (COLD, ALL_IDS), (COLD, LEFT_OUT),
    ]  # fmt: skip
    warm, _, cold, cold_unseen = lines
    assert warm.count + cold.count == 150
    assert cold.original_auc == cold_unseen.original_auc
    for line in lines:
        assert line.to_original.difference == pytest.approx(line.auc - line.original_auc)
    shown = [dict(zip(table(lines).columns, row, strict=True)) for row in table(lines).rows]
    assert [row["AUC - original"] for row in shown] == [str(line.to_original) for line in lines]
    assert [row["number"] for row in shown] == [str(line.count) for line in lines]


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"fields": 0}, {"fields": 99}])
def test_impossible_choices_are_refused(wrong: dict[str, float]) -> None:
    dataset = generated_dataset(600)
    model = build_model("DeepFM", dataset, ModelConfig(embedding_dim=4, hidden_units=(12, 12))).eval()
    with pytest.raises(UserError, match="leave a share between 0 and 1 out of 1 to"):
        experiment(model, dataset, [0.6], **{**OPTIONS, **wrong})
