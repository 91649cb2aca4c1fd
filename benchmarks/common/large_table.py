"""A model that is one large table and little else."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LargeTableModel(nn.Module):
    """One large table, two fields that look it up, and a small MLP."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        table = torch.empty(rows, width).uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(0))
        self.table = nn.Embedding.from_pretrained(table, freeze=False)
        self.hidden = nn.Linear(2 * width, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Predicts click probabilities, [batch, 1], for ids, int64 [batch, 2]."""
        return torch.sigmoid(self.out(torch.relu(self.hidden(self.table(ids).flatten(1)))))


def random_ids(rows: int, count: int, seed: int) -> Tensor:
    """Ids of the whole table, int64 [count, 2]."""
    return torch.randint(0, rows, (count, 2), generator=torch.Generator().manual_seed(seed))
