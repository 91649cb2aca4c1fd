"""Gradients of the logit, and the metric of the next Linear, against their definitions."""

from __future__ import annotations

import torch
from torch import Tensor

import afm_fx
from afm_fx.calibration.calibration import calibrate
from tests.graphs import Tower, tower_batch
from tests.wide_and_deep import WIDTH, rows_of_ids, wide_and_deep


def test_the_gradient_moment_is_that_of_autograd() -> None:
    torch.manual_seed(2)
    model = Tower().double().eval()
    program = afm_fx.capture(model, tower_batch(4)).to(torch.float64)
    ids, dense = tower_batch(50)
    found = calibrate(program, [(ids[:30], dense[:30]), (ids[30:], dense[30:])], sensitivity_rows=50).sensitivities

    features = torch.cat(
        [model.tables[0](ids[:, 0]), dense.double(), *(model.tables[field](ids[:, field]) for field in (1, 2))], dim=-1
    )
    first = model.first(features)
    second = model.second(torch.relu(first))
    logit = model.last(torch.relu(second)).sum()
    of_features, of_first, of_second = torch.autograd.grad(logit, [features, first, second])
    for name, gradient in (("tables.0", of_features[:, :6]), ("first", of_first), ("second", of_second)):
        torch.testing.assert_close(found[name].gradient, gradient.mT @ gradient, rtol=1e-9, atol=1e-12)
        assert found[name].rows == 50


def test_the_consumer_moment_is_the_metric_of_the_next_linear_through_the_activation() -> None:
    torch.manual_seed(2)
    model = Tower().double().eval()
    program = afm_fx.capture(model, tower_batch(4)).to(torch.float64)
    ids, dense = tower_batch(20_000)
    found = calibrate(program, [(ids, dense)], sensitivity_rows=1).sensitivities
    weight, rows = model.first.weight, model.second.weight
    table = found["tables.1"].consumer / 20_000
    start = 6 + 2
    close(table, weight[:, start : start + 7].mT @ weight[:, start : start + 7])
    features = torch.cat(
        [model.tables[0](ids[:, 0]), dense.double(), *(model.tables[field](ids[:, field]) for field in (1, 2))], dim=-1
    )
    mask = (model.first(features) > 0).double()
    close(found["first"].consumer / 20_000, (rows.mT @ rows) * (mask.mT @ mask) / 20_000)


def close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).norm() / wanted.norm() < 0.05


def test_joint_tables_hold_those_of_their_parts_and_statistics_add_up() -> None:
    program = wide_and_deep()
    batches = [rows_of_ids(40), rows_of_ids(60, seed=1)]
    whole = calibrate(program, batches, sensitivity_rows=100)
    joint, part = whole.sensitivities["tables.0.joint"], whole.sensitivities["tables.0"]
    torch.testing.assert_close(joint.gradient[:WIDTH, :WIDTH], part.gradient)
    torch.testing.assert_close(joint.gradient[WIDTH, WIDTH], torch.tensor(100.0).double())
    torch.testing.assert_close(whole.moments["tables.0.joint"].mean[:WIDTH], whole.moments["tables.0"].mean)
    apart = [calibrate(program, [batch], sensitivity_rows=100) for batch in batches]
    summed = apart[0] + apart[1]
    for name, found in whole.sensitivities.items():
        torch.testing.assert_close(summed.sensitivities[name].gradient, found.gradient, rtol=1e-10, atol=1e-12)
    for name, spread in whole.activations.items():
        torch.testing.assert_close(summed.activations[name].covariance, spread.covariance, rtol=1e-9, atol=1e-12)


def test_without_asking_there_are_no_gradients() -> None:
    assert not calibrate(wide_and_deep(), [rows_of_ids(40)]).sensitivities
