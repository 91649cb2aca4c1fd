"""Row lookups in one form, and what only looks like one."""

from __future__ import annotations

import pytest
import torch

import afm_fx
from passes.graph import aten
from passes.sites.sites import find_sites
from tests.passes.sites.test_lookups import ROW_LOOKUPS, WIDTH, Function, Model, capture, inputs

AS_EMBEDDING = ["index_select", "gather of expanded ids", "gather of repeated ids"]
AS_INDEX = ["index by a matrix of ids", "index that counts from the end"]


def targets_of(function: Function) -> set[object]:
    return {node.target for node in capture(function).graph_module.graph.nodes}


@pytest.mark.parametrize("name", AS_EMBEDDING)
def test_becomes_an_embedding(name: str) -> None:
    targets = targets_of(ROW_LOOKUPS[name][0])
    assert aten.embedding.default in targets
    assert not targets & {aten.index_select.default, aten.gather.default}


@pytest.mark.parametrize("name", AS_INDEX)
def test_stays_an_index_because_that_counts_negative_ids_from_the_end(name: str) -> None:
    targets = targets_of(ROW_LOOKUPS[name][0])
    assert aten.index.Tensor in targets
    assert aten.embedding.default not in targets


NO_LOOKUPS: dict[str, Function] = {
    "gather of some columns": lambda m, ids, _: torch.gather(m.table.weight, 0, ids[:, :1].expand(-1, WIDTH - 2)),
    "gather of other ids per column": lambda m, ids, _: torch.gather(
        m.table.weight, 0, torch.cat([ids, ids], 1)[:, :WIDTH]
    ),
    "gather of ids repeated over rows too": lambda m, ids, _: torch.gather(
        m.table.weight, 0, ids[:, :1].repeat(2, WIDTH)
    ),
    "index_select of columns": lambda m, ids, _: torch.index_select(m.table.weight, 1, ids[0] % WIDTH),
    "index_select of a dense matrix": lambda m, ids, weights: torch.index_select(weights, 0, ids[:, 0] * 0),
}


@pytest.mark.parametrize("name", NO_LOOKUPS)
def test_what_takes_no_whole_rows_of_a_table_is_left_alone_and_stays_right(name: str) -> None:
    model = Model(NO_LOOKUPS[name]).eval()
    program = afm_fx.capture(model, inputs())
    assert aten.embedding.default not in {node.target for node in program.graph_module.graph.nodes}
    assert "table" not in {site.name for site in find_sites(program.graph_module)}
    batch = inputs(9)
    assert torch.equal(program.run(batch), model(*batch))
