"""Ragged lists of ids by feature, as TorchRec's ``KeyedJaggedTensor`` offers them, for tests without TorchRec."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lists:
    """One feature's lists: all values one after the other, and the number of each row's."""

    ids: Tensor
    counts: Tensor
    scores: Tensor | None = None

    def values(self) -> Tensor:
        return self.ids

    def lengths(self) -> Tensor:
        return self.counts

    def weights_or_none(self) -> Tensor | None:
        return self.scores

    def offsets(self) -> Tensor:
        return torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])


@dataclass(frozen=True)
class Ragged:
    """Lists by feature."""

    lists: dict[str, Lists]

    def to_dict(self) -> dict[str, Lists]:
        return self.lists


def draw(
    tables: dict[str, int], counts: dict[str, Tensor], *, weighted: bool = False, seed: int = 0
) -> dict[str, Lists]:
    """Random ids of every feature, below the number of its table's rows."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, lengths in counts.items():
        total = int(lengths.sum())
        ids = (torch.rand(total, generator=generator).square() * tables[name]).long()
        found[name] = Lists(ids, lengths, torch.rand(total, generator=generator) if weighted else None)
    return found
