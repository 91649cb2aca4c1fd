"""Tables of one index as one table: nothing changes, and only where nothing else reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from passes.codes.factor import factor_of
from passes.graph import aten, clone_graph_module
from passes.graph.errors import TableIndexError
from passes.sites.join_tables import JoinTables, joinable_tables
from passes.sites.sites import find_sites
from tests.wide_and_deep import FIELDS, ROWS, WIDTH, rows_of_ids, wide_and_deep


def test_the_lookups_of_an_embedding_and_its_linear_weight_become_one_and_nothing_changes() -> None:
    program = wide_and_deep()
    module = clone_graph_module(program.graph_module)
    JoinTables()(module)
    lookups = [node for node in module.graph.nodes if node.target is aten.embedding.default]
    assert [tuple(node.args[0].meta["val"].shape) for node in lookups] == [(ROWS, WIDTH + 1)] * FIELDS
    ids = rows_of_ids(30)
    torch.testing.assert_close(program.with_graph(module).run(ids), program.run(ids), rtol=0, atol=0)
    assert [site.width for site in find_sites(module)][:FIELDS] == [WIDTH + 1] * FIELDS
    assert not joinable_tables(module)


def test_only_the_named_tables_are_joined_and_unknown_names_are_refused() -> None:
    module = clone_graph_module(wide_and_deep().graph_module)
    first = joinable_tables(module)[0]
    assert (first.tables, first.widths) == (("tables.0", "weights.0"), (WIDTH, 1))
    JoinTables([first.name])(module)
    assert [joint.tables[0] for joint in joinable_tables(module)] == ["tables.1", "tables.2"]
    with pytest.raises(TableIndexError, match="'nowhere'"):
        JoinTables(["nowhere"])(module)


class Pair(nn.Module):
    def __init__(self, use: Callable[[Pair, Tensor], Tensor], padding: int | None = None, rows: int = 9) -> None:
        super().__init__()
        self.one, self.other = nn.Embedding(9, 4), nn.Embedding(rows, 3, padding_idx=padding)
        self.use = use

    def forward(self, ids: Tensor) -> Tensor:
        return self.use(self, ids)


APART: dict[str, Callable[[], Pair]] = {
    "other ids": lambda: Pair(lambda m, ids: torch.cat([m.one(ids[:, 0]), m.other(ids[:, 1])], dim=1)),
    "another number of rows": lambda: Pair(lambda m, ids: torch.cat([m.one(ids), m.other(ids)], dim=2), rows=12),
    "a padding row in one": lambda: Pair(lambda m, ids: torch.cat([m.one(ids), m.other(ids)], dim=2), padding=0),
    "one looked up twice": lambda: Pair(
        lambda m, ids: torch.cat([m.one(ids), m.other(ids), m.other(ids.flip(1))], dim=2)
    ),
    "one multiplied by": lambda: Pair(lambda m, ids: m.one(ids) + m.other(ids) @ m.other.weight[:3] @ m.one.weight[:3]),
}


@pytest.mark.parametrize("name", APART)
def test_tables_that_differ_in_use_stay_apart(name: str) -> None:
    model = APART[name]().eval()
    assert not joinable_tables(afm_fx.capture(model, (torch.randint(0, 9, (5, 2)),)).graph_module)


def test_two_lookups_each_are_joined_pairwise() -> None:
    model = Pair(lambda m, ids: torch.cat([m.one(ids), m.other(ids), m.one(ids.flip(1)), m.other(ids.flip(1))], dim=2))
    program = afm_fx.capture(model.eval(), (torch.randint(0, 9, (5, 2)),))
    module = clone_graph_module(program.graph_module)
    JoinTables()(module)
    ids = torch.randint(0, 9, (20, 2))
    assert torch.equal(program.with_graph(module).run(ids), program.run(ids))
    assert sum(node.target is aten.embedding.default for node in module.graph.nodes) == 2


def test_tables_under_one_code_are_encoded_where_they_are() -> None:
    one, other = torch.randn(70_000, 3), torch.randn(70_000, 2)
    basis = torch.linalg.qr(torch.randn(5, 5).double())[0][:, :2].contiguous()
    factor = factor_of(basis.mT.contiguous(), basis, torch.randn(5).double())
    assert torch.equal(factor.encode_table(one, other), factor.encode_table(torch.cat([one, other], dim=1)))
