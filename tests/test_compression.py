"""The whole pass in one call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import afm_fx
from afm_fx.errors import CalibrationError, CaptureError
from tests.graphs import Tower, tower_batch


def test_compress_captures_with_the_first_batch_and_calibrates_on_all() -> None:
    model = Tower()
    policy = afm_fx.Fixed(embedding=2, linear=3)
    compressed = afm_fx.compress(model, (tower_batch(20) for _ in range(3)), policy, basis="afm")
    assert compressed.statistics.rows == 60
    unpacked = afm_fx.apply_plan(compressed.original, compressed.plan)
    assert unpacked.parameter_count() == compressed.plan.parameters_after == compressed.report.parameters_after
    assert compressed.report.parameters_before == sum(parameter.numel() for parameter in model.parameters())
    assert compressed.report.bytes_before == 4 * compressed.report.parameters_before
    batch = tower_batch(7)
    torch.testing.assert_close(compressed.original.run(batch), model(*batch).detach())
    error = (compressed.program.run(batch) - model(*batch)).abs().max()
    assert 0 < error < 0.5


@pytest.mark.parametrize("kind", ["module", "exported", "program"])
def test_compress_takes_modules_exported_programs_and_programs(kind: str) -> None:
    model = Tower().eval()
    batch = tower_batch(20)
    rows = torch.export.Dim("rows")
    ways: dict[str, Callable[[], Any]] = {
        "module": lambda: model,
        "exported": lambda: torch.export.export(model, batch, dynamic_shapes=({0: rows}, {0: rows})),
        "program": lambda: afm_fx.capture(model, batch),
    }
    compressed = afm_fx.compress(ways[kind](), [batch, tower_batch(30)], afm_fx.FullRank())
    fresh = tower_batch(9)
    torch.testing.assert_close(compressed.program.run(fresh), model(*fresh).detach(), rtol=1e-5, atol=1e-5)


def test_a_model_in_training_mode_is_compressed_in_eval_and_left_in_training() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.9), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    model[1].eval()
    model.train()
    data = torch.randn(50, 4)
    compressed = afm_fx.compress(model, [data], afm_fx.FullRank())
    assert model.training
    model.eval()
    torch.testing.assert_close(compressed.program.run(data), model(data).detach(), rtol=1e-5, atol=1e-5)


def test_no_batches_and_a_batch_of_one_row_are_told_apart() -> None:
    with pytest.raises(CalibrationError, match="no calibration batches"):
        afm_fx.compress(Tower(), [], afm_fx.FullRank())
    with pytest.raises(CaptureError, match="at least 2"):
        afm_fx.compress(Tower(), [tower_batch(1)], afm_fx.FullRank())


def test_the_report_says_sizes_ranks_and_reasons() -> None:
    policy = afm_fx.Fixed(embedding=2, linear=3)
    report = afm_fx.compress(Tower(), [tower_batch(50)], policy, basis="afm").report
    document = json.loads(report.to_json())
    assert document["parameters_after"] == report.parameters_after
    assert [site["rank"] for site in document["sites"]] == [2, 2, 2, 3, 3]
    assert document["refused"] == {"last": "one feature wide, there is nothing to factor"}
    assert f"{report.parameters_before:,}" in report.table()
    assert "5 of 5" in report.table()


def test_given_statistics_compress_reads_only_the_rows_that_it_measures_on() -> None:
    program = afm_fx.capture(Tower().eval(), tower_batch(4))
    calibrated = afm_fx.calibrate(program, [tower_batch(200)], sensitivity_rows=200)
    read = []

    def batches():
        for number in range(100):
            read.append(number)
            yield tower_batch(4_096)

    compressed = afm_fx.compress(program, batches(), afm_fx.Budget(0.5), statistics=calibrated)
    assert compressed.statistics is calibrated
    assert read == [*range(5)] or read == [*range(6)]  # one row of five, 4,096 in all
    assert compressed.plan.parameters_after < program.parameter_count()
    without = afm_fx.calibrate(program, [tower_batch(200)])
    with pytest.raises(CalibrationError, match="without gradients, which a measured plan needs"):
        afm_fx.compress(program, batches(), afm_fx.Budget(0.5), statistics=without)
    with pytest.raises(CalibrationError, match="no batches to measure"):
        afm_fx.compress(program, [], afm_fx.Budget(0.5), statistics=calibrated)
