"""Shares of data files: every row in one of them, the sum that of one call, and no share taken for another."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import afm_fx
from afm_fx.calibration.statistics import missing_shares
from afm_fx.data.data_files import ArrayFile
from afm_fx.data.file_batches import FileBatches
from afm_fx.errors import CalibrationError, UserError
from tests.calibration.some_statistics import close

ROWS = 53
OPTIONS: dict[str, Any] = {"sensitivity_rows": 16}


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 70), nn.ReLU(), nn.Linear(70, 3))
    return afm_fx.capture(model, torch.zeros(2, 4)).to(torch.float64)


@pytest.fixture(scope="module")
def batches(program: afm_fx.Program) -> FileBatches:
    return of(program, np.random.default_rng(4).standard_normal((ROWS, 4)) + 5)


def of(program: afm_fx.Program, rows: np.ndarray, size: int = 4) -> FileBatches:
    return FileBatches(ArrayFile(Path("data.npy"), {"rows": rows}), program, size)


def add(parts: list[afm_fx.Statistics]) -> afm_fx.Statistics:
    return functools.reduce(afm_fx.Statistics.__add__, parts)


@given(st.integers(1, 30), st.integers(1, 12), st.none() | st.integers(1, 80))
def test_every_row_is_in_one_share_and_shares_differ_by_one_batch_at_most(program, size, count, limit):
    rows = np.arange(ROWS * 4).reshape(ROWS, 4).astype(np.float32)
    head = of(program, rows, size).head(limit)
    shares = [head.share(index, count) for index in range(count)]
    read = [[batch[0] for batch in share] for share in shares]
    assert [len(each) for each in read] == [len(share) for share in shares]
    assert max(map(len, read)) - min(map(len, read)) <= 1
    together = torch.cat([batch for each in read for batch in each])
    assert torch.equal(together, torch.from_numpy(rows[:limit]))
    whole = [batch[0] for batch in head]
    assert [len(batch) for each in read for batch in each] == [len(batch) for batch in whole]


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("max_rows", [None, 30])
def test_shares_add_up_to_one_pass_with_the_same_draws(program, batches, count, max_rows):
    whole = afm_fx.calibrate(program, batches, max_rows=max_rows, **OPTIONS)
    parts = [
        afm_fx.calibrate(program, batches, max_rows=max_rows, share=(index, count), **OPTIONS)
        for index in reversed(range(count))
    ]
    found = add(parts)
    assert (
        (found.rows, found.batches) == (whole.rows, whole.batches) == ((max_rows or ROWS), -(-(max_rows or ROWS) // 4))
    )
    assert found.origin == whole.origin
    assert missing_shares(found.shares) == []
    for name, moments in whole.moments.items():
        assert found.moments[name].count == moments.count
        close(found.moments[name].mean, moments.mean)
        close(found.moments[name].scatter, moments.scatter)
        assert found.sensitivities[name].rows == whole.sensitivities[name].rows == 16
        close(found.sensitivities[name].gradient, whole.sensitivities[name].gradient)
        close(found.sensitivities[name].consumer, whole.sensitivities[name].consumer)


def test_gradients_are_taken_evenly_over_the_data(program):
    rows = np.zeros((100, 4))
    rows[:50] = 1.0
    taken = [
        afm_fx.calibrate(program, of(program, rows, 5), share=(half, 2), sensitivity_rows=20).sensitivities["0"].rows
        for half in (0, 1)
    ]
    assert taken == [10, 10]


def test_what_is_no_share_or_cannot_be_shared_is_refused(program, batches):
    for share in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(UserError, match="there is no share"):
            afm_fx.calibrate(program, batches, share=share)
    with pytest.raises(UserError, match="share needs a FileBatches"):
        afm_fx.calibrate(program, [torch.zeros(2, 4)], share=(0, 2))


def test_shares_of_other_data_models_and_options_are_told_apart(program, batches):
    first = afm_fx.calibrate(program, batches, share=(0, 2))
    other_data = of(program, np.zeros((ROWS, 4)))
    both = first + afm_fx.calibrate(program, other_data, share=(1, 2))
    assert len(missing_shares(both.shares)) == 2  # not halves of one data set
    with pytest.raises(CalibrationError, match="differ in sensitivity_rows"):
        _ = first + afm_fx.calibrate(program, batches, share=(1, 2), sensitivity_rows=8)
    retrained = program.to(torch.float64)
    with torch.no_grad():
        next(retrained.parameters())[0, 0] += 1e-3
    new = afm_fx.calibrate(retrained, batches, share=(1, 2))
    with pytest.raises(CalibrationError, match="differ in the model"):
        _ = first + new


def test_a_bad_value_is_named_by_its_row_in_the_data(program):
    rows = np.ones((ROWS, 4))
    rows[41] = np.nan
    with pytest.raises(CalibrationError, match=r"'data\.npy', row 41: column 'rows' has the value nan"):
        afm_fx.calibrate(program, of(program, rows), share=(1, 2))
