"""The rest of the vocabulary, operator by operator: what becomes of a looked-up value, at full rank unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.planning.cost import CostKind, cost
from passes.graph import clone_graph_module
from passes.laws.verdicts import Fate
from passes.sink_codes import SinkCodes, analyze
from tests.passes.test_sink_codes import (
    WIDTH,
    Looked,
    assert_absorbed,
    assert_analysed_as_rewritten,
    assert_equal,
    assert_kept_on_codes,
    assert_restored,
    build,
    makers,
    orthonormal_factors,
    rewritten,
)
from tests.passes.vocabulary_cases import ABSORBED, CASES, ON_CODES, RESTORED, normalized

pytestmark = pytest.mark.xdist_group("vocabulary")  # one worker captures every case once


@pytest.mark.parametrize("name", ON_CODES)
def test_kept_on_codes_until_a_linear_takes_them_in(name: str) -> None:
    assert_kept_on_codes(*ON_CODES[name])


@pytest.mark.parametrize("name", ABSORBED)
def test_absorbed_without_any_restore(name: str) -> None:
    assert "restore" not in makers(assert_absorbed(build(*ABSORBED[name])))


@pytest.mark.parametrize("name", RESTORED)
def test_restored_just_before(name: str) -> None:
    assert_restored(*RESTORED[name])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("rows of fields of several tables", "rows of fields whose decoders differ"), ("halves of rows", "cuts through")],
)
def test_a_reshape_that_is_restored_says_which_way_it_is_in_the_way(name: str, reason: str) -> None:
    sink, _ = rewritten(build(RESTORED[name][0], 1))
    assert all(reason in verdict.reason for verdict in sink.verdicts)


@pytest.mark.parametrize("name", CASES)
def test_the_analysis_says_what_the_rewrite_does(name: str) -> None:
    assert_analysed_as_rewritten(build(*CASES[name][:2]))


@pytest.mark.parametrize("name", ON_CODES)
def test_what_was_kept_on_codes_is_restored_exactly(name: str) -> None:
    function = ON_CODES[name][0]

    def without_linear(x: Looked) -> Tensor:
        return function(Looked(x.own, x.rows, x.stacked, x.dense, torch.relu, x.narrow))

    program = build(without_linear, 1)
    sink, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    assert {verdict.fate for verdict in sink.verdicts} >= {Fate.ON_CODES, Fate.RESTORED}


class Normalized(nn.Module):
    """Tables and dense features, normalized, through two Linears of which the first is normalized too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(9, 6), nn.Linear(9, 8), nn.Linear(8, 3)
        self.before, self.after = nn.BatchNorm1d(9), nn.BatchNorm1d(8)
        for norm in (self.before, self.after):
            for tensor in norm.state_dict().values():
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 2.0)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        features = self.before(torch.cat([self.table(ids), dense], 1))
        return self.second(self.after(self.first(features)).relu())


def test_batch_norms_around_a_linear_vanish_into_decoders() -> None:
    batch = torch.randint(0, 9, (5,)), torch.randn(5, 3)
    program = afm_fx.capture(Normalized().eval(), batch).to(torch.float64)
    clone = clone_graph_module(program.graph_module)
    factors = orthonormal_factors(clone, ("embedding", "linear"))
    sink = SinkCodes(factors, strict=True)
    sink(clone)
    ids, dense = torch.randint(0, 9, (7,)), torch.randn(7, 3).double()
    torch.testing.assert_close(clone(ids, dense), program.run((ids, dense)), rtol=1e-10, atol=1e-10)
    assert not [node for node in clone.graph.nodes if "batch_norm" in str(node.target)]
    assert not [name for name, _ in clone.named_parameters() if name.startswith(("before", "after"))]
    analysis = analyze(program.graph_module, ranks={name: factor.rank for name, factor in factors.items()})
    assert analysis.verdicts == sink.verdicts
    assert cost(analysis.rewritten, CostKind.PARAMETERS) == cost(clone, CostKind.PARAMETERS)


def test_a_batch_norm_of_dense_features_is_restored_as_a_product_with_a_vector() -> None:
    program = build(lambda x: normalized(torch.cat([x.own[0], x.dense], 1), x).relu(), 1)
    _, low_rank = rewritten(program)
    assert_equal(program, low_rank)
    sizes = {name: parameter.numel() for name, parameter in low_rank.graph_module.named_parameters()}
    assert [numel for name, numel in sizes.items() if name.endswith("scale")] == [3]
    assert max(numel for name, numel in sizes.items() if "decoder" in name) == WIDTH * WIDTH
