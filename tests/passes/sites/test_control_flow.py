"""``torch.cond``: what its branches read is left as it is or restored before it, and the result is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from passes.laws.verdicts import Fate
from passes.pipeline import pipeline
from passes.sink_codes import analyze
from passes.sites.sites import SiteKind, find_sites
from tests.passes.test_sink_codes import orthonormal_factors

ROWS, WIDTH = 11, 6


class Branching(nn.Module):
    """A branch takes looked-up features, a table of its own, and a Linear that is used outside as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inside = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.shared, self.own = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        features = self.table(ids)

        def add(features: Tensor, ids: Tensor) -> Tensor:
            return self.shared(features) + self.own(self.inside(ids))

        def subtract(features: Tensor, ids: Tensor) -> Tensor:
            return self.shared(features) - self.own(self.inside(ids))

        chosen: Tensor = torch.cond(dense.sum() > 0, add, subtract, (features, ids))
        return chosen + self.shared(features)


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    model = Branching().double().eval()
    return afm_fx.capture(model, (torch.randint(0, ROWS, (5,)), torch.randn(5, 2).double()))


def test_what_a_branch_reads_is_restored_before_it_and_its_weights_are_refused(program: afm_fx.Program) -> None:
    fates = {verdict.operator: verdict.fate for verdict in analyze(program.graph_module).verdicts}
    assert fates == {"cond": Fate.RESTORED, "aten.linear": Fate.ABSORBED}
    refusals = {site.name: site.refusal for site in find_sites(program.graph_module) if site.refusal is not None}
    assert "used inside cond" in refusals["shared"]
    assert "inside" not in orthonormal_factors(program.graph_module)


def test_what_only_branches_read_is_a_table_or_a_linear_by_what_they_do_with_it(program: afm_fx.Program) -> None:
    sites = {site.name: site for site in find_sites(program.graph_module)}
    table, linear = sites["inside"], sites["own"]
    assert (table.kind, table.rows, table.width) == (SiteKind.EMBEDDING, ROWS, WIDTH)
    assert (linear.kind, linear.rows, linear.width) == (SiteKind.LINEAR, WIDTH, 4)
    assert (table.refusal or "").startswith("the table is used inside cond")
    assert (linear.refusal or "").startswith("the weight is used inside cond")


@pytest.mark.parametrize("sign", [1, -1])
def test_both_branches_give_what_they_gave(program: afm_fx.Program, sign: int) -> None:
    low_rank = program.clone()
    for each in pipeline(orthonormal_factors(program.graph_module, ("embedding", "linear"))):
        each(low_rank.graph_module)
    batch = torch.randint(0, ROWS, (7,)), sign * torch.rand(7, 2).double()
    torch.testing.assert_close(low_rank.run(batch), program.run(batch), rtol=1e-10, atol=1e-10)
    assert {"inside.weight", "own.weight", "shared.weight"} <= set(low_rank.graph_module.state_dict())
