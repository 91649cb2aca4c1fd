"""Small models that tests of the core share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

FIELDS, ROWS, WIDTH, DENSE = 3, 11, 6, 2


class Tower(nn.Module):
    """Three tables and dense features, concatenated, through an MLP."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS + field, WIDTH + field) for field in range(FIELDS))
        width = sum(table.embedding_dim for table in self.looked_up()) + DENSE
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)

    def looked_up(self) -> list[nn.Embedding]:
        """The tables."""
        return [table for table in self.tables if isinstance(table, nn.Embedding)]

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        looked_up = [table(ids[:, field]) for field, table in enumerate(self.tables)]
        features = torch.cat([looked_up[0], dense, *looked_up[1:]], dim=-1)
        return self.last(torch.relu(self.second(torch.relu(self.first(features)))))


def tower_batch(rows: int) -> tuple[Tensor, Tensor]:
    """Inputs of :class:`Tower`."""
    return torch.randint(0, ROWS, (rows, FIELDS)), torch.randn(rows, DENSE)


def plain_mlp() -> nn.Module:
    """A model of one tensor [batch, 4] and no table."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


def correlated(rows: int, width: int, rank: int, noise: float = 0.01, mean: float = 0.0) -> Tensor:
    """Rows [rows, width] in float64 that lie near a random subspace of the given rank."""
    basis = torch.randn(rank, width, dtype=torch.float64)
    return torch.randn(rows, rank, dtype=torch.float64) @ basis + noise * torch.randn(rows, width).double() + mean


def node_of(module: GraphModule, target: object) -> Node:
    """The first node that calls an operator."""
    return next(node for node in module.graph.nodes if node.target == target)
