"""The table of laws: complete entries, unknown by default, open to users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import afm_fx
from passes.laws import moves, table as laws
from passes.laws.outcomes import Law
from passes.sink_codes import analyze
from tests.graphs import ROWS


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


def test_a_law_without_a_rule_takes_the_users_reason(own_operator: Callable[..., Any]) -> None:
    laws.register(own_operator, Law.NONLINEAR, reason="it rounds to whole numbers, said its author")
    verdict = analyze(afm_fx.capture(Kept(), torch.randint(0, ROWS, (5,))).graph_module).verdicts[0]
    assert (verdict.law, verdict.reason) == (Law.NONLINEAR, "it rounds to whole numbers, said its author")


@pytest.mark.parametrize("law", ["move", "linear"])
def test_a_law_that_goes_on_needs_a_rule(law: str) -> None:
    with pytest.raises(ValueError, match="needs a rule"):
        laws.register(torch.ops.aten.erf.default, law)
    with pytest.raises(ValueError, match="harmless"):
        laws.register(torch.ops.aten.erf.default, "harmless")
