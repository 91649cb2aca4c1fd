"""Moves along leading axes: the operator itself moves the code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import afm_fx
from passes.graph.nodes import aten
from passes.laws.verdicts import Fate
from tests.passes.rewrite_check import check_rewrite

ROWS = 4


class Halves(nn.Module):
    """Adds the second half of the rows to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(11, 6), nn.Linear(6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        first, second = torch.split(self.table(ids), ROWS // 2)
        return self.last(first + second)


def ids(_: int = ROWS) -> tuple[Tensor]:
    return (torch.randint(0, 11, (ROWS,)),)


def test_an_axis_that_is_not_written_is_the_operators_own() -> None:
    program = afm_fx.capture(Halves().double(), ids(), dynamic_batch=False)
    (split,) = (node for node in program.graph_module.graph.nodes if node.target is aten.split.Tensor)
    assert len(split.args) == 2
    verdicts = check_rewrite(program, ids).verdicts
    assert Fate.RESTORED not in {verdict.fate for verdict in verdicts if verdict.site == "table"}
