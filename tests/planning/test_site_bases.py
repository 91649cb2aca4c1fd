"""Bases: each errs least in the metric that it is for; those of tables that calibration saw only a part of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import afm_fx
from afm_fx.calibration.sensitivity import Sensitivity
from afm_fx.calibration.taps import plain_taps
from afm_fx.calibration.traffic import Traffic
from afm_fx.planning.basis import eigenbasis
from afm_fx.planning.basis_kind import BasisKind
from afm_fx.planning.simulation import through
from afm_fx.planning.site_bases import SiteBases, unseen_energy
from tests.fast_capture import fast_capture
from tests.graphs import ROWS, WIDTH, Tower, correlated, tower_batch

SEEN = 6


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    """Rows that traffic asks for vary along one axis, the others along another, about other means."""
    torch.manual_seed(0)
    model = Tower()
    with torch.no_grad():
        table = model.looked_up()[0].weight
        table.mul_(0.01)
        table[:SEEN, 0] += torch.randn(SEEN) + 2
        table[SEEN:, 1] += torch.randn(ROWS - SEEN) - 2
    return fast_capture(model, tower_batch(4)).to(torch.float64)


@pytest.fixture(scope="module")
def statistics(program: afm_fx.Program) -> afm_fx.Statistics:
    torch.manual_seed(1)
    ids, dense = tower_batch(200)
    return afm_fx.calibrate(program, [(ids % SEEN, dense)])


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SiteBases]:
    def made(program: afm_fx.Program, statistics: afm_fx.Statistics, share: float) -> SiteBases:
        """The bases made for a share of later lookups on rows not seen."""
        monkeypatch.setattr(Traffic, "unseen_share", share)
        found = SiteBases(program, plain_taps(program.graph_module)[0], statistics)
        assert found[BasisKind.AFM]  # bases are made when they are asked for
        return found

    return made


def error_on(program: afm_fx.Program, rows: slice, found: SiteBases) -> float:
    table = program.graph_module.get_parameter("tables.0.weight").detach()[rows]
    factor = found[BasisKind.AFM].factor(1)
    codes = table @ factor.encoder.mT + (0 if factor.shift is None else factor.shift)
    return float((factor.decode(codes) - table).square().sum(dim=1).mean())


def test_the_basis_is_that_of_calibration_on_the_mixture_it_is_made_for(program, statistics, bases) -> None:
    share = 0.25
    traffic = statistics.traffic["tables.0"]
    weights = traffic.counts / traffic.lookups * (1 - share)
    weights[SEEN:] = share / (ROWS - SEEN)
    table = program.graph_module.get_parameter("tables.0.weight").detach()
    centre = weights @ table
    covariance = (table - centre).mT @ ((table - centre) * weights[:, None])
    found = bases(program, statistics, share)[BasisKind.AFM]
    assert found.centre is not None
    torch.testing.assert_close(found.centre, centre, rtol=1e-10, atol=1e-12)
    expected = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    assert float((found.vectors[:, 0] @ expected).abs()) == pytest.approx(1.0, abs=1e-9)


def test_rows_not_seen_are_described_better_and_the_stated_error_stays_that_of_the_traffic(
    program, statistics, bases
) -> None:
    ignorant, mixed = bases(program, statistics, 0.0), bases(program, statistics, 0.5)
    unseen = slice(SEEN, ROWS)
    assert error_on(program, unseen, mixed) < 0.5 * error_on(program, unseen, ignorant)
    counts = statistics.traffic["tables.0"].counts[:SEEN]
    each = [error_on(program, slice(row, row + 1), mixed) for row in range(SEEN)]
    measured = sum(error * float(count) for error, count in zip(each, counts, strict=True)) / float(counts.sum())
    assert mixed[BasisKind.AFM].error(1) == pytest.approx(measured, rel=1e-9)


def test_a_table_seen_whole_has_the_plain_basis_whatever_the_share(program, bases) -> None:
    torch.manual_seed(2)
    whole = afm_fx.calibrate(program, [tower_batch(200)])
    assert whole.traffic["tables.0"].rows_seen == ROWS
    assert torch.equal(
        bases(program, whole, 0.0)[BasisKind.AFM].vectors, bases(program, whole, 0.9)[BasisKind.AFM].vectors
    )


def test_the_plan_tells_coverage(program, statistics, tmp_path) -> None:
    policy = afm_fx.Fixed(embedding=1, linear=None)
    plan = afm_fx.make_plan(program, statistics, policy)
    coverage = plan.sites[0].coverage
    assert coverage is not None
    assert coverage.rows_seen == SEEN
    assert coverage.expected_unseen == statistics.traffic["tables.0"].unseen_share > 0
    least = max(plan.sites, key=lambda site: site.coverage.expected_unseen if site.coverage is not None else 0.0)
    assert f"knows least, {least.name}: {SEEN} of {least.shape[0]} rows seen" in plan.table()
    plan.save(tmp_path / "plan.safetensors")
    assert afm_fx.Plan.load(tmp_path / "plan.safetensors").sites == plan.sites


RANK = 2


def metrics_of(sensitivity: Sensitivity, covariance: Tensor) -> dict[BasisKind, Tensor]:
    """What the squared error of features is weighed with; of two together, each costs as much on these features."""
    eye = torch.eye(len(covariance), dtype=torch.float64)
    gradient, consumer, afm = (
        each * covariance.trace() / (each * covariance).sum()
        for each in (sensitivity.gradient, sensitivity.consumer, eye)
    )
    return {
        BasisKind.AFM: afm,
        BasisKind.GRADIENT: gradient,
        BasisKind.CONSUMER: consumer,
        BasisKind.GRADIENT_AND_AFM: gradient + afm,
        BasisKind.GRADIENT_AND_CONSUMER: gradient + consumer,
    }


def test_each_basis_errs_least_in_the_metric_that_it_is_for(program) -> None:
    torch.manual_seed(3)
    statistics = afm_fx.calibrate(program, [tower_batch(200)])
    gradients, jacobians = (correlated(200, WIDTH, 2) for _ in range(2))
    sensitivity = Sensitivity(200, gradients.mT @ gradients, jacobians.mT @ jacobians)
    statistics = replace(statistics, sensitivities={"tables.0": sensitivity})
    found = SiteBases(program, plain_taps(program.graph_module)[0], statistics)
    table = program.graph_module.get_parameter("tables.0.weight").detach()
    counts = statistics.traffic["tables.0"].counts
    covariance = statistics.moments["tables.0"].covariance
    metrics = metrics_of(sensitivity, covariance)

    def error(kind: BasisKind, metric: Tensor) -> float:
        factor = found[kind].factor(RANK)
        codes = table @ factor.encoder.mT + (0 if factor.shift is None else factor.shift)
        off = factor.decode(codes) - table
        return float(counts @ ((off @ metric) * off).sum(dim=1))

    for kind, metric in metrics.items():
        errors = {other: error(other, metric) for other in metrics}
        assert min(errors, key=errors.__getitem__) is kind, (kind, errors)


@pytest.mark.parametrize("rows", [1, 3, 11, 12])
def test_fewer_rows_than_features_are_mixed_with_the_weights_in_the_share_that_they_leave_out(
    program, rows: int
) -> None:
    torch.manual_seed(4)
    statistics = afm_fx.calibrate(program, [tower_batch(rows)])
    site = plain_taps(program.graph_module)[3]
    weight = program.graph_module.get_parameter("first.weight").detach()
    moments = statistics.moments[site.site.name]
    covariance, prior, width = moments.covariance, weight @ weight.mT, moments.width
    prior = prior * (covariance.trace() / prior.trace() if rows > 1 else 1)
    share = unseen_energy(covariance, prior, rows) if rows < width == 12 else 0.0
    assert (share == 1.0) is (rows == 1)
    mixed = (1 - share) * covariance + share * prior
    expected = torch.linalg.eigh(mixed).eigenvectors[:, -1]
    found = SiteBases(program, site, statistics)[BasisKind.AFM]
    assert float((found.vectors[:, 0] @ expected).abs()) == pytest.approx(1.0, abs=1e-9)


INPUTS, OUTPUTS, FRESH_RANK, FEW = 40, 64, 8, 16


def inputs_of_rank(rank: int, *, noise: float = 0.0) -> Callable[[int], Tensor]:
    mixing = torch.randn(rank, INPUTS, dtype=torch.float64)
    return lambda rows: (
        torch.randn(rows, rank, dtype=torch.float64) @ mixing + noise * torch.randn(rows, INPUTS, dtype=torch.float64)
    )


def fresh_errors(draw: Callable[[int], Tensor], weight: Tensor, rows: int) -> dict[str, float]:
    """Mean squared feature errors on fresh rows at one rank: of a planned basis, and of fixed shares of the prior."""
    layer = torch.nn.Linear(INPUTS, OUTPUTS).double()
    layer.weight.data.copy_(weight)
    program = fast_capture(layer, (draw(4),))
    seen, fresh = draw(rows), draw(4000)
    statistics = afm_fx.calibrate(program, [(seen,)])
    found = SiteBases(program, plain_taps(program.graph_module)[0], statistics)[BasisKind.AFM]
    features, (moments,) = layer(fresh).detach(), statistics.moments.values()
    prior = weight @ weight.mT * (moments.covariance.trace() / weight.square().sum())
    bases = {"planned": found}
    for name, share in (("seen alone", 0.0), ("width and count", OUTPUTS / (OUTPUTS + rows))):
        mixed = (1 - share) * moments.covariance + share * prior
        bases[name] = eigenbasis(mixed, moments.covariance, moments.mean)
    return {
        name: float((through(each.factor(FRESH_RANK), features) - features).square().sum(1).mean())
        for name, each in bases.items()
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_few_rows_of_low_rank_are_not_turned_toward_the_weights(noise: float, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(OUTPUTS, INPUTS, dtype=torch.float64)
    errors = fresh_errors(inputs_of_rank(FRESH_RANK, noise=noise), weight, FEW)
    assert errors["planned"] <= 1.01 * errors["seen alone"] + 1e-9
    assert errors["planned"] < 0.02 * errors["width and count"]


@pytest.mark.parametrize("seed", range(5))
def test_what_few_rows_of_full_rank_leave_out_is_taken_from_the_weights(seed: int) -> None:
    torch.manual_seed(seed)
    decaying = torch.randn(OUTPUTS, INPUTS, dtype=torch.float64) * 0.9 ** torch.arange(INPUTS)
    errors = fresh_errors(inputs_of_rank(INPUTS), decaying, FEW)
    assert errors["planned"] < 0.9 * errors["seen alone"]
    isotropic = fresh_errors(lambda rows: torch.randn(rows, INPUTS, dtype=torch.float64), decaying, FEW)
    assert isotropic["planned"] < 0.75 * isotropic["seen alone"]
    assert isotropic["planned"] < 1.2 * isotropic["width and count"]


@pytest.mark.parametrize(("rows", "rank", "low", "high"), [
    (1, INPUTS, 1.0, 1.0), (4, INPUTS, 0.7, 1.0), (16, INPUTS, 0.4, 0.8), (41, INPUTS, 0.0, 0.0), (16, 8, 0.0, 1e-6),
    (8, 8, 1e-3, 0.5),
])  # fmt: skip
def test_the_share_that_rows_leave_out_is_told_by_how_far_each_is_from_the_others(
    rows: int, rank: int, low: float, high: float
) -> None:
    torch.manual_seed(rows)
    seen = torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(rank, INPUTS, dtype=torch.float64)
    if rank == INPUTS:
        seen = torch.randn(rows, INPUTS, dtype=torch.float64)
    centred = seen - seen.mean(0)
    share = unseen_energy(centred.mT @ centred / rows, torch.eye(INPUTS, dtype=torch.float64), rows)
    assert low <= share <= high
