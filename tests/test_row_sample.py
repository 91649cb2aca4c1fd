"""Samples of rows: uniform, of bounded size, the same merged as drawn at once, and kept in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import afm_fx
from afm_fx.batches import checked_batches
from afm_fx.errors import CalibrationError
from afm_fx.row_sample import RowSample, sampled
from tests.graphs import Tower, plain_mlp, tower_batch


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return afm_fx.capture(Tower(), tower_batch(4))


def sample_of(program: afm_fx.Program, dense: torch.Tensor, limit: int, seed: int = 0) -> RowSample:
    sample = None
    ids = torch.zeros(len(dense), 3, dtype=torch.int64)
    for batch in checked_batches(program, [(ids[:30], dense[:30]), (ids[30:], dense[30:])]):
        sample = sampled(program, batch, sample, limit, 2 * seed + batch.number)
    assert sample is not None
    return sample


def test_every_row_is_as_likely_as_any_other(program: afm_fx.Program) -> None:
    dense = torch.arange(100.0)[:, None].repeat(1, 2)
    drawn = torch.zeros(100)
    for seed in range(400):
        sample = sample_of(program, dense, 20, seed)
        assert sample.rows == 20
        assert len(sample.columns["dense"][:, 0].unique()) == 20
        drawn[sample.columns["dense"][:, 0].long()] += 1
    assert (drawn / 400 - 0.2).abs().max() < 0.09  # 4.5 standard deviations


def test_decayed_rows_give_way_to_new_ones(program: afm_fx.Program) -> None:
    old = sample_of(program, torch.zeros(1000, 2), 200)
    new = sample_of(program, torch.ones(1000, 2), 200, seed=1)
    even, faded = (old + new).columns["dense"].mean(), (old.decayed(0.1) + new).columns["dense"].mean()
    assert even == pytest.approx(0.5, abs=0.15)
    assert faded == pytest.approx(1000 / 1100, abs=0.08)


def test_a_sample_is_saved_with_the_statistics_and_gives_batches(program: afm_fx.Program, tmp_path: Path) -> None:
    statistics = afm_fx.calibrate(program, [tower_batch(50)], sampled_rows=20)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = afm_fx.Statistics.load(tmp_path / "statistics.safetensors").sample
    assert loaded is not None
    assert statistics.sample is not None
    for one, other in zip(loaded.batches(program, 8), statistics.sample.batches(program, 8), strict=True):
        assert torch.equal(program.run(one), program.run(other))
    assert afm_fx.calibrate(program, [tower_batch(50)]).sample is None


def test_rows_of_another_model_are_refused(program: afm_fx.Program) -> None:
    sample = afm_fx.calibrate(program, [tower_batch(50)], sampled_rows=20).sample
    assert sample is not None
    with pytest.raises(CalibrationError, match="another model"):
        next(sample.batches(afm_fx.capture(plain_mlp(), torch.randn(3, 4)), 8))
