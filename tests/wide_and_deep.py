"""A small model whose fields each have an embedding and a weight of a linear term, for tests of joint codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import afm_fx

FIELDS, ROWS, WIDTH, HIDDEN = 3, 40, 6, 24
DEAD = 7
"""Units of the first hidden layer that never fire."""


class WideAndDeep(nn.Module):
    """A linear term, products of pairs of fields, and an MLP with dead units; click probabilities [rows]."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, WIDTH) for _ in range(FIELDS))
        self.weights = nn.ModuleList(nn.Embedding(ROWS, 1) for _ in range(FIELDS))
        self.first, self.second = nn.Linear(FIELDS * WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, 1)
        with torch.no_grad():
            self.first.bias[:DEAD] = -100.0

    def forward(self, ids: Tensor) -> Tensor:
        features = torch.stack([table(ids[:, field]) for field, table in enumerate(self.tables)], dim=1)
        linear = torch.cat([table(ids[:, field]) for field, table in enumerate(self.weights)], dim=1).sum(1)
        pairs = (features.sum(1).square() - features.square().sum(1)).sum(1) / 2
        hidden = torch.relu(self.second(torch.relu(self.first(features.flatten(1)))))
        return torch.sigmoid(linear + pairs / 10 + self.last(hidden).squeeze(-1))


def rows_of_ids(rows: int, seed: int = 0) -> Tensor:
    """Ids [rows, fields], the low ones more often."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, FIELDS, generator=generator).square() * ROWS).long()


def wide_and_deep(dtype: torch.dtype = torch.float64) -> afm_fx.Program:
    """The captured model."""
    torch.manual_seed(5)
    return afm_fx.capture(WideAndDeep().eval(), (rows_of_ids(4),)).to(dtype)
