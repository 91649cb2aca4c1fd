"""CTR models of any number of graph nodes: what the analysis meets when a model grows.

A model is a row of *towers*, as multi-scenario and multi-task recommenders have them. Every tower has 26 tables of its
own, dense features and a behaviour sequence, and runs what CTR models are made of: a squeeze-and-excitation gate per
field, FM's pairwise term, a dot interaction of all pairs, vector cross layers, a masked mean of the sequence, an MLP.
All towers share a user table; a wide layer reads every table at once, and a softmax gate mixes the towers' outputs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NODES_PER_TOWER = 140
"""Nodes of the canonical graph that every tower adds, roughly."""

SEQUENCE = 5
VOCABULARY = 20


@dataclass(frozen=True)
class TowerShape:
    """Sizes of one tower; they do not change with the number of towers.

    Attributes:
        fields: id fields, a table each.
        dense: dense features.
        width: width of the tables.
        hidden: widths of the MLP's hidden layers.
        cross_layers: number of vector cross layers.
    """

    fields: int = 26
    dense: int = 13
    width: int = 16
    hidden: tuple[int, ...] = (64, 32)
    cross_layers: int = 2

    @property
    def features(self) -> int:
        """Number of looked-up and dense features."""
        return self.fields * self.width + self.dense


class Tower(nn.Module):
    """One tower.

    Args:
        shape: its sizes.
        user: the table that all towers share.
    """

    def __init__(self, shape: TowerShape, user: nn.Embedding) -> None:
        super().__init__()
        self.shape, self.user = shape, user
        self.tables = nn.ModuleList(nn.Embedding(VOCABULARY + field, shape.width) for field in range(shape.fields))
        self.items = nn.Embedding(VOCABULARY, shape.width, padding_idx=0)
        self.squeeze = nn.Linear(shape.fields, shape.fields // 4)
        self.excite = nn.Linear(shape.fields // 4, shape.fields)
        self.kernels = nn.ParameterList(torch.randn(shape.features, 1) / 20 for _ in range(shape.cross_layers))
        self.biases = nn.ParameterList(torch.randn(shape.features) / 20 for _ in range(shape.cross_layers))
        inputs = shape.features + 2 * shape.width
        sizes = (inputs, *shape.hidden)
        layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(sizes)]
        self.mlp = nn.Sequential(*layers)
        self.head = nn.Linear(shape.hidden[-1] + shape.features + shape.fields * shape.fields + 1, 1)

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor, user: Tensor) -> tuple[Tensor, Tensor]:
        """The logit [rows, 1] and the embeddings [rows, fields * width]."""
        embedded = torch.stack([table(ids[:, field]) for field, table in enumerate(self.tables)], dim=1)
        gates = torch.relu(self.excite(torch.relu(self.squeeze(embedded.mean(dim=2)))))
        gated = embedded * gates.unsqueeze(2)
        pairs = (embedded.sum(dim=1) ** 2 - (embedded**2).sum(dim=1)).sum(dim=1, keepdim=True) / 2
        dots = torch.bmm(embedded, embedded.transpose(1, 2)).flatten(1)
        flat = embedded.flatten(1)
        start = crossed = torch.cat([flat, dense], dim=1)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            crossed = start * torch.matmul(crossed, kernel) + bias + crossed
        mask = (history > 0).unsqueeze(2)
        pooled = (self.items(history) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        deep = self.mlp(torch.cat([gated.flatten(1), dense, pooled, self.user(user)], dim=1))
        return self.head(torch.cat([deep, crossed, dots, pairs], dim=1)), flat


class ManyTowers(nn.Module):
    """Towers side by side, a wide layer over all their tables, a gate that mixes them."""

    def __init__(self, towers: int, shape: TowerShape) -> None:
        super().__init__()
        self.shape, self.count = shape, towers
        user = nn.Embedding(VOCABULARY, shape.width)
        self.towers = nn.ModuleList(Tower(shape, user) for _ in range(towers))
        self.wide = nn.Linear(towers * shape.fields * shape.width, 1)
        self.gate = nn.Linear(towers * shape.dense, towers)

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor, user: Tensor) -> Tensor:
        """Click probabilities [rows]."""
        shape, logits, tables = self.shape, [], []
        for place, tower in enumerate(self.towers):
            own = ids[:, place * shape.fields : (place + 1) * shape.fields]
            features = dense[:, place * shape.dense : (place + 1) * shape.dense]
            logit, flat = tower(own, features, history[:, place], user)
            logits.append(logit)
            tables.append(flat)
        shares = torch.softmax(self.gate(dense), dim=1)
        mixed = (torch.cat(logits, dim=1) * shares).sum(dim=1, keepdim=True)
        return torch.sigmoid(mixed + self.wide(torch.cat(tables, dim=1))).squeeze(1)

    def batch(self, rows: int) -> tuple[Tensor, ...]:
        """Random inputs."""
        towers, shape = self.count, self.shape
        return (
            torch.randint(0, VOCABULARY, (rows, towers * shape.fields)),
            torch.randn(rows, towers * shape.dense),
            torch.randint(0, VOCABULARY, (rows, towers, SEQUENCE)),
            torch.randint(0, VOCABULARY, (rows,)),
        )
