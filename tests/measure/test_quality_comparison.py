"""Quality side by side: the numbers of each model alone, and nothing where the model is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

import afm_fx
from afm_fx.errors import PolicyError
from afm_fx.measure.worsening import auc
from tests.graphs import Tower, tower_batch


def test_each_model_is_measured_as_it_would_be_alone() -> None:
    tower = Tower().eval()
    with torch.no_grad():
        tower.last.weight.mul_(30)  # outputs that are all between 0 and 1 would be taken for probabilities
    program = afm_fx.capture(tower, tower_batch(4))
    compressed = afm_fx.compress(program, [tower_batch(300)], afm_fx.Fixed(embedding=1, linear=2))
    inputs, labels = tower_batch(120), (torch.arange(120) % 3 == 0).float()
    found = afm_fx.compare_quality(program, compressed.program, [(inputs, labels)])
    (task,) = found.tasks
    truth = labels.numpy()
    for model, area, loss in (
        (program, task.auc_before, task.log_loss_before),
        (compressed.program, task.auc_after, task.log_loss_after),
    ):
        logits = model.run(inputs).detach().double().numpy().ravel()
        assert area == pytest.approx(auc(truth, logits), abs=1e-12)
        assert loss == pytest.approx(log_loss(truth, 1 / (1 + np.exp(-logits))), abs=1e-9)
    assert task.auc_drop.estimate == pytest.approx(task.auc_before - task.auc_after, abs=1e-12)
    assert task.log_loss_rise.estimate == pytest.approx(task.log_loss_after - task.log_loss_before, abs=1e-12)
    assert found.rows == 120


def test_a_model_beside_itself_changes_nothing_and_labels_are_checked() -> None:
    program = afm_fx.capture(Tower().eval(), tower_batch(4))
    inputs = tower_batch(60)
    (task,) = afm_fx.compare_quality(program, program, [(inputs, torch.arange(60) % 2)]).tasks
    assert (task.auc_drop.estimate, task.auc_drop.standard_error, task.log_loss_rise.estimate) == (0.0, 0.0, 0.0)
    with pytest.raises(PolicyError, match="clicks and non-clicks"):
        afm_fx.compare_quality(program, program, [(inputs, torch.ones(60))])
