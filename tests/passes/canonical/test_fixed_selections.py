"""Inner products of pairs picked by a constant mask, as FuxiCTR's DLRM picks them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from passes.graph import aten

FIELDS, WIDTH, ROWS = 4, 6, 30


class MaskedPairs(nn.Module):
    """All inner products of pairs of fields, picked out of the square by ``masked_select``, through an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, WIDTH) for _ in range(FIELDS))
        pairs = torch.triu(torch.ones(FIELDS, FIELDS), 1).bool()
        self.pairs = nn.Parameter(pairs, requires_grad=False)
        self.top = nn.Sequential(nn.Linear(FIELDS * (FIELDS - 1) // 2, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, ids: Tensor) -> Tensor:
        fields = torch.stack([table(ids[:, field]) for field, table in enumerate(self.tables)], dim=1)
        products = torch.masked_select(torch.bmm(fields, fields.transpose(1, 2)), self.pairs)
        return self.top(products.view(-1, FIELDS * (FIELDS - 1) // 2)).squeeze(1)


class DataMask(nn.Module):
    """A selection that the data decide."""

    def forward(self, dense: Tensor) -> Tensor:
        return torch.masked_select(dense, dense > 0)


@pytest.fixture(scope="module")
def compressed() -> afm_fx.Compressed:
    torch.manual_seed(2)
    batches = [torch.randint(0, ROWS, (200, FIELDS)) for _ in range(2)]
    model = MaskedPairs().eval().double()
    policy = afm_fx.Fixed(embedding=2, linear=None)
    return afm_fx.compress(model, batches, policy, basis="afm", pack=False)


def test_a_selection_by_a_constant_mask_becomes_an_index_of_a_known_shape(compressed: afm_fx.Compressed) -> None:
    graph = compressed.original.graph_module.graph
    assert not graph.find_nodes(op="call_function", target=aten.masked_select.default)
    (picked,) = graph.find_nodes(op="call_function", target=aten.index.Tensor)
    assert picked.meta["val"].shape[1] == FIELDS * (FIELDS - 1) // 2
    assert picked.meta["val"].shape[0] == compressed.original.placeholders()[0].meta["val"].shape[0]
    torch.manual_seed(2)
    batches = [torch.randint(0, ROWS, (200, FIELDS)) for _ in range(2)]
    model = MaskedPairs().eval().double()
    assert torch.equal(compressed.original.run(batches[1]), model(batches[1]).detach())


def test_features_are_decoded_before_the_products_that_are_picked(compressed: afm_fx.Compressed) -> None:
    tables = [chain for chain in afm_fx.explain(compressed.original).chains if chain.site.name.startswith("tables.")]
    assert {chain.site.name for chain in tables} == {f"tables.{field}" for field in range(FIELDS)}
    assert {str(chain.verdict.fate) for chain in tables} == {"restored"}
    assert any("aten.index" in str(node.target) for node in compressed.program.graph_module.graph.nodes)


def test_a_mask_that_depends_on_the_data_is_left() -> None:
    program = afm_fx.capture(DataMask(), torch.randn(5, 3))
    assert program.graph_module.graph.find_nodes(op="call_function", target=aten.masked_select.default)
