"""Sites: which tables and Linears may be factored, and why the others may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from passes.sites.sites import Site, SiteKind, find_sites

IDS = torch.randint(0, 9, (5,))


def sites_of(model: nn.Module, example: object = IDS) -> dict[str, Site]:
    return {site.name: site for site in find_sites(afm_fx.capture(model, example).graph_module)}


class TwoLayers(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, **options)
        self.hidden, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.hidden(self.table(ids)).relu())


def test_tables_and_linears_are_found_in_graph_order_with_their_sizes() -> None:
    sites = sites_of(TwoLayers())
    assert list(sites) == ["table", "hidden", "last"]
    table, hidden, last = sites.values()
    assert (table.kind, table.width, table.rows, table.refusal) == (SiteKind.EMBEDDING, 4, 9, None)
    assert (hidden.kind, hidden.width, hidden.rows, hidden.refusal) == (SiteKind.LINEAR, 8, 4, None)
    assert last.refusal == "one feature wide, there is nothing to factor"


def test_a_padding_row_keeps_the_code_uncentred() -> None:
    assert not sites_of(TwoLayers(padding_idx=0))["table"].centred
    assert sites_of(TwoLayers())["table"].centred


def test_a_table_that_is_also_a_matrix_is_refused() -> None:
    class Tied(TwoLayers):
        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids) @ self.table.weight.T

    refusal = sites_of(Tied())["table"].refusal
    assert refusal is not None
    assert "also used by" in refusal


def test_weights_tied_under_two_names_are_one_site() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(8, 2)
            self.other.weight = self.one.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(torch.cat([self.one(ids), self.other(ids + 0)], -1))

    sites = sites_of(Tied())
    assert list(sites) == ["one", "last"]
    assert len(sites["one"].nodes) == 2


def test_a_linear_whose_weight_is_used_elsewhere_is_refused() -> None:
    class Elsewhere(TwoLayers):
        def forward(self, ids: Tensor) -> Tensor:
            return self.hidden(self.table(ids)) + self.hidden.weight.sum()

    refusal = sites_of(Elsewhere())["hidden"].refusal
    assert refusal is not None
    assert "weight is also used by" in refusal


def test_a_table_in_a_buffer_is_refused() -> None:
    class Buffered(TwoLayers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("fixed", torch.randn(9, 4))

        def forward(self, ids: Tensor) -> Tensor:
            return self.hidden(nn.functional.embedding(ids, self.get_buffer("fixed")))

    assert sites_of(Buffered())["fixed"].refusal == "the table is a buffer, not a parameter"


def test_max_norm_is_refused() -> None:
    refusal = sites_of(TwoLayers(max_norm=1.0))["table"].refusal
    assert refusal == "the table has max_norm, which rescales its rows while the model runs"


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_options_of_training_do_not_matter(option: str) -> None:
    assert sites_of(TwoLayers(**{option: True}))["table"].refusal is None
