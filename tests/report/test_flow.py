"""The flow: what features go through, with what, and where from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.report.flow import FlowEdge, FlowNode
from tests.graphs import ROWS, Tower, tower_batch


def flow(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> dict[str, FlowNode]:
    return {node.name: node for node in afm_fx.explain(model, inputs).flow}


def test_codes_run_from_the_tables_to_the_linear_that_absorbs_them() -> None:
    found = flow(Tower(), tower_batch(4))
    assert list(found) == [
        "embedding", "embedding_1", "embedding_2", "cat", "linear", "relu", "linear_1", "relu_1", "linear_2", "output",
    ]  # fmt: skip
    assert found["cat"].carries == ("tables.0", "tables.1", "tables.2")
    assert found["cat"].fate is None
    assert found["cat"].inputs == tuple(FlowEdge(f"embedding{end}", codes=True) for end in ("", "_1", "_2"))
    assert found["linear"].site == "first"
    assert found["linear"].fate == "absorbed"
    assert found["linear"].carries == ("first",)
    assert found["relu"].fate == "restored"
    assert found["relu"].carries == ()
    assert found["linear_1"].inputs == (FlowEdge("relu", codes=False),)
    assert found["cat"].shape == ("batch", "23")
    assert found["output"].shape == ()


def test_operators_between_are_counted_by_the_shortest_way() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(ROWS, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            bent = torch.tanh(self.table(ids))
            return self.linear(torch.sigmoid(torch.exp(bent)) + bent)

    found = flow(Long(), torch.randint(0, ROWS, (5,)))
    assert list(found) == ["embedding", "tanh", "linear", "output"]
    assert found["linear"].inputs == (FlowEdge("tanh", codes=False, between=1),)


def test_what_takes_only_the_dense_part_of_codes_is_not_in_the_flow() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(ROWS, 4), nn.Linear(6, 3)

        def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
            both = torch.cat([self.table(ids), dense], dim=1)
            return self.linear(both) + torch.relu(both[:, 4:]).sum(1, keepdim=True)

    found = flow(Part(), (torch.randint(0, ROWS, (5,)), torch.rand(5, 2)))
    assert {"embedding", "cat", "linear"} <= set(found)
    assert not [name for name in found if name.startswith(("slice", "relu"))]
