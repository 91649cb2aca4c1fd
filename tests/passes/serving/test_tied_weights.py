"""Weights that are read in two places: packing leaves them as they are, and never keeps a second copy beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import afm_fx

ROWS, WIDTH, FIELDS = 500, 16, 3


class Tied(nn.Module):
    """A table, the Linears around it, and one use of them twice."""

    def __init__(self, use: Callable[[Tied, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table, self.other = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.weights = nn.Embedding(ROWS, 1)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.wide, self.logit = nn.Linear(FIELDS * WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.long_logit = nn.Linear(FIELDS * WIDTH * 2, 1)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.norm.running_mean = torch.randn(WIDTH)
        self.matrix, self.row = nn.Parameter(torch.randn(WIDTH, ROWS)), nn.Parameter(torch.randn(WIDTH))
        self.use = use

    def forward(self, ids: Tensor) -> Tensor:
        return self.use(self, self.table(ids), ids)


def machine(model: Tied, rows: Tensor, ids: Tensor) -> Tensor:
    """A factorization machine."""
    pairs = rows.sum(1).square().sum(1, keepdim=True) - rows.square().sum((1, 2)).unsqueeze(1)
    return model.weights(ids).sum(1) + 0.5 * pairs


USES: dict[str, Callable[[Tied, Tensor, Tensor], Tensor]] = {
    "logits of the table": lambda m, rows, ids: m.first(rows[:, 0]) @ m.table.weight.T,
    "scaled logits of the table": lambda m, rows, ids: (rows[:, 0] @ m.table.weight.T) * 0.5 + 1.0,
    "logits of all but the padding row": lambda m, rows, ids: m.first(rows[:, 0]) @ m.table.weight[1:].T,
    "logits by tensordot": lambda m, rows, ids: torch.tensordot(m.first(rows[:, 0]), m.table.weight, ([-1], [1])),
    "two tables, one of them tied": lambda m, rows, ids: (rows + m.other(ids))[:, 1] @ m.table.weight.T,
    "a matrix used both ways": lambda m, rows, ids: (torch.relu(rows[:, 0] @ m.matrix)) @ m.matrix.T,
    "one Linear twice, scaled": lambda m, rows, ids: 2.0 * m.first(rows[:, 0]) + m.row + m.first(rows[:, 1]),
    "one Linear twice before a sum": lambda m, rows, ids: torch.relu(m.second(rows[:, 0])) + m.second(rows[:, 1]),
    "one Linear behind two": lambda m, rows, ids: m.wide(rows.flatten(1)) @ m.second.weight + m.second(rows[:, 0]),
    "one Linear beside a norm": lambda m, rows, ids: m.norm(m.first(rows[:, 0])) + torch.relu(m.first(rows[:, 1])),
    "one Linear in a concat": lambda m, rows, ids: torch.cat([m.first(rows[:, 0]), m.first(rows[:, 1])], 1),
    "one Linear of pieces": lambda m, rows, ids: m.first(torch.cat([rows[:, 0, :8], rows[:, 2, 8:]], 1))
    + torch.relu(m.first(rows[:, 1])),
    "a linear term of two fields": lambda m, rows, ids: machine(m, rows, ids) + m.weights(ids[:, 2] // 2),
    "one logit twice": lambda m, rows, ids: m.logit(rows[:, 0]) + m.logit(rows[:, 1]).sigmoid(),
    "a long logit twice": lambda m, rows, ids: m.long_logit(torch.cat([rows.flatten(1)] * 2, 1))
    + m.long_logit(torch.cat([rows.flip(1).flatten(1)] * 2, 1)).sigmoid(),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_the_packed_program_of_tied_weights_has_no_more_parameters_or_bytes(name: str) -> None:
    program = afm_fx.capture(Tied(USES[name]).eval(), (torch.randint(0, ROWS, (6, FIELDS)),)).to(torch.float64)
    packed = afm_fx.pack(program).program
    ones = 2 * FIELDS * WIDTH if name == "a linear term of two fields" else 0  # sums are products with ones
    assert packed.parameter_count() <= program.parameter_count() + ones
    assert packed.state_bytes() <= program.state_bytes() + 8 * (ones + FIELDS)  # and the tables' first rows
    ids = torch.randint(0, ROWS, (40, FIELDS))
    torch.testing.assert_close(packed.run(ids), program.run(ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["logits of the table", "logits by tensordot", "two tables, one of them tied"])
def test_a_decoder_is_not_taken_into_a_table_that_stays(name: str) -> None:
    rows = [torch.randint(0, ROWS, (80, FIELDS))]
    compressed = afm_fx.compress(Tied(USES[name]).eval(), rows, afm_fx.Fixed(embedding=6, linear=6), pack=False)
    before = compressed.original.parameter_count()
    assert compressed.plan.factors
    assert compressed.program.parameter_count() <= before
    assert afm_fx.pack(compressed.program).program.parameter_count() <= before


def test_a_product_with_the_transposed_table_reads_the_table_itself() -> None:
    program = afm_fx.capture(Tied(USES["logits of the table"]).eval(), (torch.randint(0, ROWS, (6, FIELDS)),))
    packed = afm_fx.pack(program).program.graph_module
    targets = [node.target for node in packed.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.aten.linear.default) == 2
    assert not {torch.ops.aten.t.default, torch.ops.aten.permute.default, torch.ops.aten.mm.default} & set(targets)
