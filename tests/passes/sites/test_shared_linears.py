"""One weight of a Linear on several inputs: exact whatever codes those are, and counted as it is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.planning.cost import CostKind, cost
from passes.graph import clone_graph_module
from passes.sink_codes import SinkCodes, analyze
from tests.passes.test_sink_codes import orthonormal_factors

ROWS, WIDTH = 11, 6


class Shared(nn.Module):
    def __init__(self, function: Callable[[Shared, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.one, self.other = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.shared, self.last = nn.Linear(WIDTH, 5), nn.Linear(5, 4)
        self.square, self.dense = nn.Linear(WIDTH, WIDTH), nn.Linear(3, WIDTH)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.function(self, ids, dense)


CASES: dict[str, Callable[[Shared, Tensor, Tensor], Tensor]] = {
    "two tables": lambda m, i, _: m.last(m.shared(m.one(i[:, 0])).relu() + m.shared(m.other(i[:, 1])).relu()),
    "two tables, added": lambda m, i, _: m.last(m.shared(m.one(i[:, 0])) + m.shared(m.other(i[:, 1]))),
    "a table and a Linear": lambda m, i, x: m.last(m.shared(m.one(i[:, 0])).relu() + m.shared(m.dense(x)).relu()),
    "a table and dense features": lambda m, i, x: m.shared(m.one(i[:, 0])).relu() + m.shared(x.repeat(1, 2)).relu(),
    "itself": lambda m, i, _: m.shared(m.square(m.square(m.one(i[:, 0])))).relu(),
    "itself after a curve and a sum": lambda m, i, _: m.shared(
        m.square(m.square(m.one(i[:, 0])).relu() + m.other(i[:, 1]))
    ),
    "with and without its bias": lambda m, i, _: (
        nn.functional.linear(m.one(i[:, 0]), m.shared.weight).relu() + m.shared(m.other(i[:, 1])).relu()
    ),
    "with and without its bias, one table": lambda m, i, _: (
        nn.functional.linear(m.one(i[:, 0]), m.shared.weight).relu() + m.shared(m.one(i[:, 1])).relu()
    ),
    "one table and its shifted rows": lambda m, i, _: m.shared(m.one(i[:, 0])).relu() + m.shared(m.one(i[:, 1]) + 0.5),
    "one table and its scaled rows": lambda m, i, _: m.shared(m.one(i[:, 0])).relu() + m.shared(m.one(i[:, 1]) * 2),
    "one table and its rows scaled by a vector": lambda m, i, _: (
        m.shared(m.one(i[:, 0])).relu() + m.shared(m.one(i[:, 1]) * m.dense.weight[:, 0])
    ),
    "one table and its gated rows": lambda m, i, x: (
        m.shared(m.one(i[:, 0])).relu() + m.shared(m.one(i[:, 1]) * x[:, :1])
    ),
    "one table and sums of its rows": lambda m, i, _: m.shared(m.one(i).sum(1)).relu() + m.shared(m.one(i[:, 1])),
}


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, ROWS, (rows, 3)), torch.randn(rows, 3)


@pytest.mark.parametrize("name", CASES)
def test_exact_and_exactly_counted_for_any_choice_of_sites(name: str) -> None:
    program = afm_fx.capture(Shared(CASES[name]).eval(), inputs(5)).to(torch.float64)
    factors = orthonormal_factors(program.graph_module, ("embedding", "linear"))
    choices = [list(factors), *([one] for one in factors), *itertools.combinations(factors, 2)]
    for names in choices:
        analysis = analyze(program.graph_module, ranks={name: factors[name].rank for name in names})
        clone = clone_graph_module(program.graph_module)
        sink = SinkCodes({name: factors[name] for name in names})
        sink(clone)
        assert analysis.verdicts == sink.verdicts
        assert cost(analysis.rewritten, CostKind.PARAMETERS) == cost(clone, CostKind.PARAMETERS), names
        for rows in (1, 8):
            batch = inputs(rows)
            found = program.with_graph(clone).run(batch)
            torch.testing.assert_close(found, program.run(batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("policy", [afm_fx.FullRank(), afm_fx.Energy(0.9), afm_fx.Fixed(embedding=2, linear=2)])
@pytest.mark.parametrize("name", CASES)
def test_a_plan_says_how_many_parameters_are_left(name: str, policy: afm_fx.planning.Policy) -> None:
    program = afm_fx.capture(Shared(CASES[name]).eval(), inputs(5)).to(torch.float64)
    compressed = afm_fx.compress(program, [inputs(64)], policy, pack=False)
    assert compressed.program.parameter_count() == compressed.plan.parameters_after
