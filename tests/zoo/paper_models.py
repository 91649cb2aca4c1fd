"""Architectures that CTR papers describe, written plainly: DLRM, two towers, a behaviour transformer, several tasks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import ZooEntry
from tests.zoo.plain_models import DENSE, VOCABULARIES, WIDTH, _generator, _ids, _mlp, ids_and_dense, two_tower_inputs

HISTORY = 5
TASKS, EXPERTS = 2, 3


class DeepLearningRecommendation(nn.Module):
    """DLRM (Naumov et al. 2019): a bottom MLP for dense features, dot products of all pairs, a top MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, WIDTH) for size in VOCABULARIES.values())
        self.bottom = _mlp(DENSE, 16, WIDTH)
        fields = len(VOCABULARIES) + 1
        self.top = _mlp(WIDTH + fields * (fields - 1) // 2, 32, 1)

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        return self._interact([table(ids[:, field]) for field, table in enumerate(self.tables)], dense)

    def _interact(self, looked_up: list[torch.Tensor], dense: torch.Tensor) -> torch.Tensor:
        bottom = torch.relu(self.bottom(dense))
        fields = torch.stack([bottom, *looked_up], dim=1)
        products = torch.bmm(fields, fields.transpose(1, 2))
        rows, columns = torch.tril_indices(fields.shape[1], fields.shape[1], offset=-1)
        return torch.sigmoid(self.top(torch.cat([bottom, products[:, rows, columns]], dim=1)))


class BagRecommendation(DeepLearningRecommendation):
    """DLRM over multi-valued fields: every table is a bag that sums."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(size, WIDTH, mode="sum") for size in VOCABULARIES.values())

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        return self._interact([table(ids[:, field]) for field, table in enumerate(self.tables)], dense)


def lists_and_dense(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three ids per field: [rows, fields, 3]."""
    generator = _generator(rows, seed)
    lists = torch.stack([_ids(rows, size, generator, 3) for size in VOCABULARIES.values()], dim=1)
    return lists, torch.randn(rows, DENSE, generator=generator)


class CosineTowers(nn.Module):
    """User and item towers of normalized vectors, matched by their cosine at a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.user_table = nn.Embedding(VOCABULARIES["user"], WIDTH)
        self.city_table = nn.Embedding(VOCABULARIES["city"], WIDTH)
        self.item_table = nn.Embedding(VOCABULARIES["item"], WIDTH)
        self.user_tower, self.item_tower = _mlp(WIDTH, 32, 16), _mlp(WIDTH + DENSE, 32, 16)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, user: torch.Tensor, city: torch.Tensor, item: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        one = self.user_tower(self.user_table(user) + self.city_table(city))
        other = self.item_tower(torch.cat([self.item_table(item), dense], dim=-1))
        return torch.cosine_similarity(one, other, dim=-1) * self.temperature


class BehaviourTransformer(nn.Module):
    """BST (Chen et al. 2019): a transformer layer over past items and the target, positions added, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(VOCABULARIES["item"], WIDTH, padding_idx=0)
        self.positions = nn.Embedding(HISTORY + 1, WIDTH)
        self.user = nn.Embedding(VOCABULARIES["user"], WIDTH)
        # One head: with an even number, torch itself takes another kernel in eval mode, of other rounding.
        self.layer = nn.TransformerEncoderLayer(WIDTH, 1, 16, dropout=0.1, batch_first=True)
        self.mlp = _mlp((HISTORY + 1) * WIDTH + WIDTH + DENSE, 32, 1)

    def forward(
        self, history: torch.Tensor, target: torch.Tensor, user: torch.Tensor, dense: torch.Tensor
    ) -> torch.Tensor:
        sequence = torch.cat([history, target.unsqueeze(1)], dim=1)
        places = torch.arange(HISTORY + 1, device=sequence.device)
        behaviour = self.layer(self.items(sequence) + self.positions(places), src_key_padding_mask=sequence == 0)
        features = torch.cat([behaviour.flatten(1), self.user(user), dense], dim=1)
        return torch.sigmoid(self.mlp(features)).squeeze(1)


def behaviours(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Histories padded with 0, a target that is none."""
    generator = _generator(rows, seed)
    length = torch.randint(1, HISTORY + 1, (rows, 1), generator=generator)
    items = VOCABULARIES["item"] - 1
    return {
        "history": (1 + _ids(rows, items, generator, HISTORY)) * (torch.arange(HISTORY) < length),
        "target": 1 + _ids(rows, items, generator),
        "user": _ids(rows, VOCABULARIES["user"], generator),
        "dense": torch.randn(rows, DENSE, generator=generator),
    }


class SharedBottomTasks(nn.Module):
    """One bottom for all tasks, a head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, WIDTH) for size in VOCABULARIES.values())
        self.bottom = _mlp(len(VOCABULARIES) * WIDTH + DENSE, 32, 16)
        self.heads = nn.ModuleList(_mlp(16, 8, 1) for _ in range(TASKS))

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = torch.relu(self.bottom(self.features(ids, dense)))
        return tuple(torch.sigmoid(head(hidden)) for head in self.heads)

    def features(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Looked-up and dense features side by side."""
        return torch.cat([*(table(ids[:, field]) for field, table in enumerate(self.tables)), dense], dim=1)


class GatedExpertTasks(SharedBottomTasks):
    """MMoE (Ma et al. 2018): every task weighs the experts by a gate of its own."""

    def __init__(self) -> None:
        super().__init__()
        width = len(VOCABULARIES) * WIDTH + DENSE
        self.bottom = nn.Sequential()
        self.experts = nn.ModuleList(_mlp(width, 24, 16) for _ in range(EXPERTS))
        self.gates = nn.ModuleList(nn.Linear(width, EXPERTS, bias=False) for _ in range(TASKS))

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.features(ids, dense)
        known = torch.stack([torch.relu(expert(features)) for expert in self.experts], dim=1)
        outputs = []
        for gate, head in zip(self.gates, self.heads, strict=True):
            weights = functional.softmax(gate(features), dim=1)
            outputs.append(torch.sigmoid(head(torch.einsum("be,beh->bh", weights, known))))
        return tuple(outputs)


def paper_entries() -> list[ZooEntry]:
    """Every model of this file."""
    return [
        ZooEntry("DLRM", DeepLearningRecommendation, ids_and_dense),
        ZooEntry("DLRM-bags", BagRecommendation, lists_and_dense),
        ZooEntry("CosineTowers", CosineTowers, two_tower_inputs),
        ZooEntry("BehaviourTransformer", BehaviourTransformer, behaviours),
        ZooEntry("SharedBottomTasks", SharedBottomTasks, ids_and_dense),
        ZooEntry("GatedExpertTasks", GatedExpertTasks, ids_and_dense),
    ]
