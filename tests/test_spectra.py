"""Spectra: shares of energy as the eigenvalues say, and the plan's own code on the curve where its basis is theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import afm_fx
from afm_fx.spectra import Spectrum, spectra_of
from tests.graphs import Tower, tower_batch


def spectra(policy: afm_fx.Policy) -> tuple[afm_fx.Statistics, list[Spectrum]]:
    program = afm_fx.capture(Tower().eval(), tower_batch(4))
    statistics = afm_fx.calibrate(program, [tower_batch(300)])
    plan = afm_fx.make_plan(program, statistics, policy, unseen_share=0.0)
    return statistics, list(spectra_of(program, statistics, plan))


def test_what_is_left_is_the_tail_of_the_eigenvalues_of_the_covariance() -> None:
    statistics, found = spectra(afm_fx.Fixed(embedding=2, linear=3))
    assert [each.site.name for each in found] == ["tables.0", "tables.1", "tables.2", "first", "second"]
    for each in found:
        values = np.linalg.eigvalsh(statistics.moments[each.site.name].covariance.numpy())[::-1]
        expected = [1 - values[:rank].sum() / values.sum() for rank in range(len(values) + 1)]
        np.testing.assert_allclose(each.left, expected, atol=1e-12)


def test_the_code_of_the_best_directions_lies_on_the_curve() -> None:
    _, found = spectra(afm_fx.Fixed(embedding=2, linear=3))
    for each in found:
        assert each.site.rank is not None
        assert each.chosen == pytest.approx(each.left[each.site.rank], abs=1e-12)


def test_a_site_without_a_code_has_a_spectrum_and_nothing_chosen() -> None:
    _, found = spectra(afm_fx.Fixed(embedding=2, linear=None))
    assert [each.chosen is None for each in found] == [False, False, False, True, True]
    assert all(torch.tensor(each.left).diff().le(1e-12).all() for each in found)
