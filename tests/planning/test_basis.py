"""Bases: the textbook method, and errors that are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afm_fx.calibration.moments import Moments
from afm_fx.planning.basis import eigenbasis, weight_second_moment
from passes.sites.sites import SiteKind
from tests.graphs import correlated


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("centred", [True, False])
def test_discarded_energy_is_the_mean_squared_error(rank: int, centred: bool) -> None:
    rows = correlated(200, 7, rank=3, mean=2.0)
    moments = Moments.of(rows)
    centre = moments.mean if centred else None
    covariance = moments.covariance if centred else moments.second_moment()
    basis = eigenbasis(covariance, covariance, centre)
    factor = basis.factor(rank)
    codes = rows @ factor.encoder.mT + (0 if factor.shift is None else factor.shift)
    measured = (factor.decode(codes) - rows).square().sum(dim=1).mean()
    torch.testing.assert_close(measured, basis.discarded[rank], rtol=1e-8, atol=1e-13)


def test_error_is_right_for_a_basis_of_another_matrix() -> None:
    rows = correlated(100, 5, rank=2)
    covariance = Moments.of(rows).second_moment()
    metric = torch.randn(5, 5, dtype=torch.float64)
    basis = eigenbasis(metric @ metric.mT, covariance, None)
    factor = basis.factor(2)
    measured = (factor.decode(rows @ factor.encoder.mT) - rows).square().sum(dim=1).mean()
    torch.testing.assert_close(measured, basis.discarded[2], rtol=1e-8, atol=1e-13)


def test_linear_site_equals_the_textbook_formula() -> None:
    """AFM on y = W x + b: y ~ U U^T (y - E y) + E y with U the top eigenvectors of Cov(y), in numpy."""
    inputs, weight, bias = torch.randn(500, 6).double(), torch.randn(8, 6).double(), torch.randn(8).double()
    outputs = inputs @ weight.T + bias
    moments = Moments.of(outputs)
    factor = eigenbasis(moments.covariance, moments.covariance, moments.mean).factor(3)
    code_weight, code_bias = factor.encode_weight(weight, bias)
    assert code_bias is not None
    ours = factor.decode(inputs @ code_weight.T + code_bias)

    y = outputs.numpy()
    values, vectors = np.linalg.eigh(np.cov(y, rowvar=False, bias=True))
    top = vectors[:, np.argsort(values)[::-1][:3]]
    textbook = (y - y.mean(0)) @ top @ top.T + y.mean(0)
    np.testing.assert_allclose(ours.numpy(), textbook, rtol=0, atol=1e-10)


def test_embedding_site_equals_the_textbook_formula() -> None:
    """AFM on a table under a traffic of ids: the same, with the moments of the looked-up rows."""
    table, ids = torch.randn(20, 6).double(), torch.randint(0, 20, (1000,)) ** 2 // 20
    moments = Moments.of(table[ids])
    factor = eigenbasis(moments.covariance, moments.covariance, moments.mean).factor(2)
    ours = factor.decode(factor.encode_table(table)[ids])

    y = table[ids].numpy()
    values, vectors = np.linalg.eigh(np.cov(y, rowvar=False, bias=True))
    top = vectors[:, np.argsort(values)[::-1][:2]]
    textbook = (y - y.mean(0)) @ top @ top.T + y.mean(0)
    np.testing.assert_allclose(ours.numpy(), textbook, rtol=0, atol=1e-10)


def test_constant_features_keep_all_energy_at_any_rank() -> None:
    zero = torch.zeros(4, 4, dtype=torch.float64)
    basis = eigenbasis(zero, zero, torch.ones(4, dtype=torch.float64))
    assert basis.kept_energy(1) == 1.0
    factor = basis.factor(1)
    row = torch.ones(1, 4, dtype=torch.float64)
    assert factor.shift is not None
    torch.testing.assert_close(factor.decode(row @ factor.encoder.mT + factor.shift), row)


def test_basis_is_the_same_for_the_same_input_and_orthonormal() -> None:
    matrix = correlated(50, 6, rank=6)
    metric = matrix.mT @ matrix
    one, other = eigenbasis(metric, metric, None), eigenbasis(metric.clone(), metric, None)
    assert torch.equal(one.vectors, other.vectors)
    torch.testing.assert_close(one.vectors.mT @ one.vectors, torch.eye(6).double(), rtol=0, atol=1e-12)
    assert (one.vectors.gather(0, one.vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_weight_second_moment_of_tables_and_linears() -> None:
    weight = torch.randn(70000, 3)
    expected = weight.double().T @ weight.double()
    torch.testing.assert_close(weight_second_moment([weight], SiteKind.EMBEDDING), expected / 70000)
    torch.testing.assert_close(
        weight_second_moment([weight[:9]], SiteKind.LINEAR), weight[:9].double() @ weight[:9].double().T
    )
