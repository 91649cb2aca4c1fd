"""A click model as a user has one: an ``nn.Module``, a checkpoint, rows to calibrate on.

``python -m examples.click_model`` trains it on generated clicks and writes ``click_model.pt`` and ``clicks.npz`` into
the working directory: a few seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.generated_clicks import ClickGenerator

CLICKS = ClickGenerator(sparse_fields=6, dense_fields=4, largest_vocabulary=4_000)
WIDTH = 16


class ClickModel(nn.Module):
    """A small DeepFM: an MLP on embeddings and dense features, plus the inner products of all pairs of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        starts = [0.01 * torch.randn(size, WIDTH) for size in CLICKS.vocabulary_sizes]
        self.tables = nn.ModuleList([nn.Embedding.from_pretrained(start, freeze=False) for start in starts])  # type: ignore[no-untyped-call]
        inputs = WIDTH * CLICKS.sparse_fields + CLICKS.dense_fields
        layers = [nn.Linear(inputs, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Click probabilities [rows] of ``ids`` [rows, sparse fields] int64 and ``dense`` [rows, dense fields]."""
        embedded = torch.stack([table(ids[:, field]) for field, table in enumerate(self.tables)], dim=1)
        pairs = (embedded.sum(dim=1) ** 2 - (embedded**2).sum(dim=1)).sum(dim=1) / 2
        deep = self.mlp(torch.cat([embedded.flatten(1), dense], dim=1)).squeeze(1)
        return torch.sigmoid(deep + pairs)


def click_model() -> tuple[nn.Module, dict[str, Tensor]]:
    """The factory that ``afm-fx`` asks for: the model and one batch of at least 2 rows."""
    ids = torch.zeros(2, CLICKS.sparse_fields, dtype=torch.int64)
    return ClickModel(), {"ids": ids, "dense": torch.zeros(2, CLICKS.dense_fields)}


def train(rows: int = 100_000, epochs: int = 2) -> None:
    """Trains the model and writes ``click_model.pt`` and ``clicks.npz``.

    Args:
        rows: generated impressions to train on.
        epochs: passes over them.
    """
    torch.manual_seed(0)
    model, data = ClickModel(), CLICKS.draw(rows)
    columns = [torch.from_numpy(column) for column in (data.ids, data.dense, data.clicks)]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(rows).split(1024):  # type: ignore[no-untyped-call]
            ids, dense, clicks = (column[batch] for column in columns)
            loss = functional.binary_cross_entropy(model(ids, dense), clicks)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.save(model.state_dict(), "click_model.pt")
    np.savez("clicks.npz", ids=data.ids, dense=data.dense)


def main() -> None:
    """Trains with the rows named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="generated impressions to train on")
    train(parser.parse_args().rows)
    print(f"Wrote {Path('click_model.pt')} and {Path('clicks.npz')}")


if __name__ == "__main__":
    main()
