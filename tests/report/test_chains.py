"""Chains: where features come from, where they go, what becomes of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import afm_fx
from tests.graphs import ROWS, Tower, tower_batch


def test_both_kinds_of_chain_are_found_with_their_paths() -> None:
    chains = afm_fx.explain(Tower(), tower_batch(4)).chains
    found = {chain.site.name: (chain.kind, chain.path, chain.verdict.fate) for chain in chains}
    assert found["tables.0"] == ("embedding -> linear", ("embedding", "cat", "linear"), "absorbed")
    assert found["first"] == ("linear -> activation -> linear", ("linear", "relu", "linear_1"), "restored")
    assert found["second"] == ("linear -> activation -> linear", ("linear_1", "relu_1", "linear_2"), "restored")
    assert found["last"][2] == "refused"


def test_one_table_has_a_verdict_per_use() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(ROWS, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            features = self.table(ids)
            products = (features * features).sum(-1, keepdim=True)
            return self.linear(features) + products + features.relu()[:, :1]

    chains = [
        chain for chain in afm_fx.explain(Mixed(), torch.randint(0, ROWS, (5,))).chains if chain.site.name == "table"
    ]
    assert {(chain.kind, str(chain.verdict.fate)) for chain in chains} == {
        ("embedding -> linear", "absorbed"),
        ("embedding -> quadratic", "on codes"),
        ("embedding -> nonlinear", "restored"),
    }


def test_the_table_groups_equal_uses_and_shows_reasons_and_source_lines() -> None:
    text = afm_fx.explain(Tower(), tower_batch(4)).table()
    assert "tables.0 .. tables.2 (3)" in text
    assert "absorbed" in text
    assert "graphs.py" in text


def test_the_table_fits_its_width_and_keeps_every_reason_and_operator() -> None:
    explanation = afm_fx.explain(Tower(), tower_batch(4))
    for width in (100, 120):
        text = explanation.table(width=width)
        assert max(map(len, text.splitlines())) <= width
        words = set(text.split())
        for chain in explanation.chains:
            assert set(chain.verdict.reason.split()) | set(chain.verdict.operator.split()) <= words


def test_a_verdict_inside_a_layer_points_to_the_line_of_the_model() -> None:
    chains = afm_fx.explain(Tower(), tower_batch(4)).chains
    absorbed = next(chain.verdict for chain in chains if chain.verdict.operator == "aten.linear")
    assert absorbed.source.startswith("graphs.py:")
