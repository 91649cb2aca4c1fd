"""Spectra: shares of energy as the eigenvalues say, and the plan's own code on the curve where its basis is theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import afm_fx
from afm_fx.planning.plan import SitePlan
from afm_fx.report.plots import spectra_of
from tests.graphs import DENSE, FIELDS, ROWS, Tower, tower_batch


def spectra(policy: afm_fx.planning.Policy) -> tuple[afm_fx.Statistics, list[tuple[SitePlan, list[float]]]]:
    program = afm_fx.capture(Tower().eval(), tower_batch(4))
    every_row = torch.stack([torch.arange(300) % (ROWS + field) for field in range(FIELDS)], dim=1)
    statistics = afm_fx.calibrate(program, [(every_row, torch.randn(300, DENSE))])
    plan = afm_fx.make_plan(program, statistics, policy)
    return statistics, list(spectra_of(statistics, plan))


def test_what_is_left_is_the_tail_of_the_eigenvalues_of_the_covariance() -> None:
    statistics, found = spectra(afm_fx.Fixed(embedding=2, linear=3))
    assert [site.name for site, _ in found] == ["tables.0", "tables.1", "tables.2", "first", "second"]
    for site, left in found:
        values = np.linalg.eigvalsh(statistics.moments[site.name].covariance.numpy())[::-1]
        expected = [1 - values[:rank].sum() / values.sum() for rank in range(len(values) + 1)]
        np.testing.assert_allclose(left, expected, atol=1e-12)


def test_the_code_of_the_best_directions_lies_on_the_curve() -> None:
    _, found = spectra(afm_fx.Fixed(embedding=2, linear=3))
    for site, left in found:
        assert site.rank is not None
        assert 1 - site.kept_energy == pytest.approx(left[site.rank], abs=1e-12)


def test_a_site_without_a_code_has_a_spectrum() -> None:
    _, found = spectra(afm_fx.Fixed(embedding=2, linear=None))
    assert [site.rank is None for site, _ in found] == [False, False, False, True, True]
    assert all(torch.tensor(left).diff().le(1e-12).all() for _, left in found)
