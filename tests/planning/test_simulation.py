"""What a simulation says of factors is what the rewritten program computes."""

from __future__ import annotations

import pytest
import torch

import afm_fx
from afm_fx.calibration.taps import Tap, joint_taps, plain_taps
from afm_fx.errors import CalibrationError
from afm_fx.planning.simulation import Simulation
from afm_fx.program.logits import expose_logits
from passes.codes.factor import Factor, factor_of
from tests.graphs import Tower, tower_batch
from tests.wide_and_deep import rows_of_ids, wide_and_deep


def some_factor(width: int, rank: int) -> Factor:
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0][:, :rank].contiguous()
    return factor_of(basis.mT.contiguous(), basis, torch.randn(width, dtype=torch.float64))


def plan_of(taps: list[Tap], factors: dict[str, Factor]) -> afm_fx.Plan:
    """A plan of exactly these factors."""
    sites = tuple(
        afm_fx.planning.SitePlan(
            tap.site.name, tap.site.kind, tap.site.shape, factors[tap.site.name].rank,
            "", 0.0, 0.0, tables=() if tap.joint is None else tap.joint.tables,
        )
        for tap in taps
        if tap.site.name in factors
    )  # fmt: skip
    return afm_fx.Plan(sites, factors)


@pytest.mark.parametrize("names", [["tables.0.joint"], ["first"], ["tables.1.joint", "first", "second"], ["*"]])
def test_simulated_logits_are_those_of_the_rewritten_program(names: list[str]) -> None:
    program = wide_and_deep()
    linears = [tap for tap in plain_taps(program.graph_module) if tap.site.kind == "linear"]
    taps = [*joint_taps(program.graph_module), *linears]
    simulation = Simulation(program, [rows_of_ids(20), rows_of_ids(30, seed=1)], taps)
    factors = {
        tap.site.name: some_factor(tap.site.width, 3) for tap in taps if tap.site.name in names or names == ["*"]
    }
    rewritten, _ = expose_logits(afm_fx.apply_plan(program, plan_of(taps, factors)))
    wanted = torch.cat([rewritten.run(rows_of_ids(20)), rewritten.run(rows_of_ids(30, seed=1))])
    torch.testing.assert_close(simulation.logits(factors).flatten(), wanted, rtol=1e-10, atol=1e-10)
    error = (wanted - simulation.original.flatten()).square().mean()
    assert simulation.error(factors) == pytest.approx(float(error), rel=1e-8)
    assert float(error) > 1e-4


def test_nothing_replaced_is_the_original_and_full_rank_is_too() -> None:
    program = afm_fx.capture(Tower(), tower_batch(4)).to(torch.float64)
    taps = plain_taps(program.graph_module)
    simulation = Simulation(program, [tower_batch(25)], taps, max_rows=20)
    assert (simulation.rows, simulation.error({})) == (20, 0.0)
    assert simulation.error({tap.site.name: some_factor(tap.site.width, tap.site.width) for tap in taps}) < 1e-24


def test_a_reference_takes_the_place_of_the_programs_own_logits() -> None:
    program = wide_and_deep()
    own = Simulation(program, [rows_of_ids(20)], ()).original
    shifted = Simulation(program, [rows_of_ids(20)], (), reference=own + 2)
    assert shifted.error({}) == pytest.approx(4.0)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no rows to measure"):
        Simulation(wide_and_deep(), [], ())
