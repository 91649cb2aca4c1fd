"""Logits in place of probabilities, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afm_fx
from afm_fx.program.logits import columns_of, expose_logits


class Model(nn.Module):
    def __init__(self, head: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 1), nn.Linear(4, 1), head

    def forward(self, features: Tensor) -> Any:
        return self.head(self.one(features), self.other(features))


def _read_twice(probability: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return probability, probability * other


HEADS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Tensor, Tensor], Any]]] = {
    "a probability": (lambda a, b: torch.sigmoid(a + b), lambda a, b: a + b),
    "moved probabilities": (
        lambda a, b: torch.cat([torch.sigmoid(a), torch.sigmoid(b).squeeze(-1).unsqueeze(-1)], dim=-1).view(-1),
        lambda a, b: torch.cat([a, b], dim=-1).view(-1),
    ),
    "two tasks": (lambda a, b: {"ctr": torch.sigmoid(a), "cvr": torch.sigmoid(b)}, lambda a, b: {"ctr": a, "cvr": b}),
    "a probability that is multiplied too": (
        lambda a, b: (torch.sigmoid(a), torch.sigmoid(a) * torch.sigmoid(b)),
        lambda a, b: (a, torch.sigmoid(a) * torch.sigmoid(b)),
    ),
    "a move that is read twice": (
        lambda a, b: _read_twice(torch.sigmoid(a).squeeze(-1), b),
        lambda a, b: _read_twice(torch.sigmoid(a).squeeze(-1), b),
    ),
    "no probability": (lambda a, b: torch.relu(a) + b, lambda a, b: torch.relu(a) + b),
    "a gate": (lambda a, b: torch.sigmoid(a) * b, lambda a, b: torch.sigmoid(a) * b),
}


@pytest.mark.parametrize("name", HEADS)
def test_only_sigmoids_that_only_outputs_read_are_taken_off(name: str) -> None:
    given, wanted = HEADS[name]
    model = Model(given).eval()
    features = torch.randn(6, 4)
    program = afm_fx.capture(model, (features,))
    logits, changed = expose_logits(program)
    outputs = logits.run(features)
    torch.testing.assert_close(outputs, wanted(model.one(features), model.other(features)), rtol=0, atol=0)
    assert changed == (str(program.graph_module.graph) != str(logits.graph_module.graph))
    assert expose_logits(logits)[1] is False


def test_columns_hold_every_floating_output_of_a_row() -> None:
    outputs = {"ctr": torch.rand(3), "tasks": [torch.rand(3, 2), torch.arange(3)], "loss": torch.rand(())}
    assert columns_of(outputs).shape == (3, 3)
