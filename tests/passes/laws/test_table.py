"""The table of laws: complete entries, unknown by default, open to users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.fx import Node

import afm_fx
from passes.codes import CodeBuilder
from passes.graph import PassArgumentError, PassError, aten, clone_graph_module
from passes.laws import moves, table as laws
from passes.laws.outcomes import Carried, Law, Outcome, Rule, Values
from passes.sink_codes import SinkCodes, analyze
from tests.graphs import ROWS
from tests.passes.test_sink_codes import orthonormal_factors


@pytest.fixture
def own_operator() -> Iterator[Callable[..., Any]]:
    library = torch.library.Library("afm_fx_test", "DEF")
    library.define("keep(Tensor x) -> Tensor")
    library.impl("keep", lambda x: x.clone(), "CompositeExplicitAutograd")
    torch.library.register_fake("afm_fx_test::keep", torch.empty_like, lib=library)
    yield torch.ops.afm_fx_test.keep.default
    laws._TABLE.pop(torch.ops.afm_fx_test.keep.default, None)
    library._destroy()


class Kept(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = torch.nn.Embedding(ROWS, 4), torch.nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.ops.afm_fx_test.keep(self.table(ids)))


def test_every_entry_has_a_rule_or_a_reason() -> None:
    entries = laws.tables()["one low-rank operand"]
    assert len(entries) > 40
    for operator, entry in entries.items():
        assert entry.rule is not None or len(entry.reason) > 20, operator
        if entry.law is Law.MOVE:
            assert entry.rule is not None, operator


def test_an_unknown_operator_restores_until_a_user_registers_its_law(own_operator: Callable[..., Any]) -> None:
    program = afm_fx.capture(Kept(), torch.randint(0, ROWS, (5,)))
    verdict = analyze(program.graph_module).verdicts[0]
    assert (verdict.law, verdict.fate) == (Law.UNKNOWN, "restored")
    assert "no law is known" in verdict.reason

    laws.register(own_operator, "move", moves.same)
    verdict = analyze(program.graph_module).verdicts[0]
    assert (verdict.law, verdict.fate) == (Law.LINEAR, "absorbed")


def _fails(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    builder.new_parameter("leftover", torch.ones(2), torch.ones(2))
    builder.emit(aten.relu.default, values[node.args[0]].code)  # type: ignore[index, union-attr]
    raise IndexError("index 40 is out of bounds")


def _of_another_shape(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    value: Any = values[node.args[0]]  # type: ignore[index]
    return Carried(replace(value, trailing=(1, *value.trailing)))


@pytest.mark.parametrize(
    ("rule", "reason"), [(_fails, "IndexError: index 40"), (_of_another_shape, "on codes it would be")]
)
def test_a_law_that_fails_restores(rule: Rule, reason: str, own_operator: Callable[..., Any]) -> None:
    laws.register(own_operator, "move", rule)
    ids = torch.randint(0, ROWS, (5,))
    program = afm_fx.capture(Kept().double(), ids)
    factors = orthonormal_factors(program.graph_module)
    sink, clone = SinkCodes(factors), clone_graph_module(program.graph_module)
    sink(clone)
    assert [(verdict.fate, verdict.law) for verdict in sink.verdicts] == [("restored", Law.MOVE)]
    assert reason in sink.verdicts[0].reason
    assert "relu" not in " ".join(str(node.target) for node in clone.graph.nodes)
    assert not any("leftover" in each.name for each in sink.made)
    torch.testing.assert_close(clone(ids), program.run(ids), rtol=1e-10, atol=1e-10)
    ranks = {name: factor.rank for name, factor in factors.items()}
    assert analyze(program.graph_module, ranks=ranks).verdicts == sink.verdicts
    with pytest.raises(PassError, match="keep"):
        SinkCodes(factors, strict=True)(clone_graph_module(program.graph_module))


def test_a_law_without_a_rule_takes_the_users_reason(own_operator: Callable[..., Any]) -> None:
    laws.register(own_operator, Law.NONLINEAR, reason="it rounds to whole numbers, said its author")
    verdict = analyze(afm_fx.capture(Kept(), torch.randint(0, ROWS, (5,))).graph_module).verdicts[0]
    assert (verdict.law, verdict.reason) == (Law.NONLINEAR, "it rounds to whole numbers, said its author")


@pytest.mark.parametrize("law", ["move", "linear"])
def test_a_law_that_goes_on_needs_a_rule(law: str) -> None:
    with pytest.raises(PassArgumentError, match="needs a rule"):
        laws.register(torch.ops.aten.erf.default, law)
    with pytest.raises(PassArgumentError, match="harmless"):
        laws.register(torch.ops.aten.erf.default, "harmless")
