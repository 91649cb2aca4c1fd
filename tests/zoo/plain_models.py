"""Plain PyTorch recommenders, written in the many ways people write them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from tests.zoo.entry import ZooEntry

VOCABULARIES = {"user": 61, "item": 97, "city": 23, "hour": 24}
WIDTH = 8
DENSE = 3


def _generator(rows: int, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000 * seed + rows)


def _ids(rows: int, vocabulary: int, generator: torch.Generator, *more: int) -> torch.Tensor:
    """Ids with a skewed distribution, as logs have it."""
    uniform = torch.rand((rows, *more), generator=generator)
    return (uniform.pow(2) * vocabulary).long().clamp_(max=vocabulary - 1)


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def feature_dict(rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = _generator(rows, seed)
    features = {name: _ids(rows, vocabulary, generator) for name, vocabulary in VOCABULARIES.items()}
    return {**features, "dense": torch.randn(rows, DENSE, generator=generator)}


class DictInputModel(nn.Module):
    """One argument: the dict of features."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, WIDTH) for name, size in VOCABULARIES.items()})
        self.mlp = _mlp(len(VOCABULARIES) * WIDTH + DENSE, 32, 16, 1)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        looked_up = [table(features[name]) for name, table in self.tables.items()]
        return torch.sigmoid(self.mlp(torch.cat([features["dense"], *looked_up], dim=1)))


class KeywordInputModel(nn.Module):
    """Keyword-only features, given in another order than the signature's."""

    def __init__(self) -> None:
        super().__init__()
        self.user_table = nn.Embedding(VOCABULARIES["user"], WIDTH)
        self.item_table = nn.Embedding(VOCABULARIES["item"], WIDTH)
        self.mlp = _mlp(2 * WIDTH + DENSE, 32, 1)

    def forward(self, *, user: torch.Tensor, item: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([self.user_table(user), dense, self.item_table(item)], dim=-1))


def keyword_inputs(rows: int, seed: int) -> dict[str, torch.Tensor]:
    features = feature_dict(rows, seed)
    return {"dense": features["dense"], "item": features["item"], "user": features["user"]}


class VariadicKeywordModel(nn.Module):
    """``forward(**features)``."""

    def __init__(self) -> None:
        super().__init__()
        self.item_table = nn.Embedding(VOCABULARIES["item"], WIDTH)
        self.mlp = _mlp(WIDTH + DENSE, 24, 1)

    def forward(self, **features: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([self.item_table(features["item"]), features["dense"]], dim=-1))


def item_and_dense(rows: int, seed: int) -> dict[str, torch.Tensor]:
    features = feature_dict(rows, seed)
    return {"item": features["item"], "dense": features["dense"]}


class StackedTableModel(nn.Module):
    """One table for all fields: ``[batch, fields]`` ids plus offsets, looked up, flattened, into a Linear."""

    def __init__(self) -> None:
        super().__init__()
        sizes = list(VOCABULARIES.values())
        self.table = nn.Embedding(sum(sizes), WIDTH)
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.starts: torch.Tensor
        self.register_buffer("starts", starts)
        self.mlp = _mlp(len(sizes) * WIDTH, 32, 16, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.table(ids + self.starts).flatten(1))


def stacked_ids(rows: int, seed: int) -> torch.Tensor:
    features = feature_dict(rows, seed)
    return torch.stack([features[name] for name in VOCABULARIES], dim=1)


class SharedTableModel(nn.Module):
    """One table looked up for two fields, with another table between them."""

    def __init__(self) -> None:
        super().__init__()
        self.city = nn.Embedding(VOCABULARIES["city"], WIDTH)
        self.item = nn.Embedding(VOCABULARIES["item"], WIDTH)
        self.mlp = _mlp(3 * WIDTH, 32, 16, 1)

    def forward(self, home: torch.Tensor, item: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([self.city(home), self.item(item), self.city(work)], dim=1)).squeeze(1)


def two_cities(rows: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = _generator(rows, seed)
    sizes = (VOCABULARIES["city"], VOCABULARIES["item"], VOCABULARIES["city"])
    return tuple(_ids(rows, size, generator) for size in sizes)


class MixedWidthModel(nn.Module):
    """Tables of different widths with dense features between them and batch-norm over the whole row."""

    widths = (4, 16, 6, 9)

    def __init__(self) -> None:
        super().__init__()
        sizes = VOCABULARIES.values()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, self.widths, strict=True))
        self.norm = nn.BatchNorm1d(sum(self.widths) + DENSE)
        self.first = nn.Linear(sum(self.widths) + DENSE, 32)
        self.plain = nn.Linear(sum(self.widths) + DENSE, 1)
        self.rest = _mlp(32, 16, 1)

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        one, two, three, four = (table(ids[:, field]) for field, table in enumerate(self.tables))
        row = torch.cat([one, dense[:, :1], two, three, dense[:, 1:], four], dim=1)
        return self.rest(torch.relu(self.first(self.norm(row)))) + self.plain(row)


def ids_and_dense(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return stacked_ids(rows, seed), feature_dict(rows, seed)["dense"]


class TwoTowerModel(nn.Module):
    """User and item towers, matched by an inner product."""

    def __init__(self) -> None:
        super().__init__()
        self.user_table = nn.Embedding(VOCABULARIES["user"], WIDTH)
        self.city_table = nn.Embedding(VOCABULARIES["city"], WIDTH)
        self.item_table = nn.Embedding(VOCABULARIES["item"], WIDTH)
        self.user_tower = _mlp(2 * WIDTH, 32, 16)
        self.item_tower = _mlp(WIDTH + DENSE, 32, 16)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, user: torch.Tensor, city: torch.Tensor, item: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        user_vector = self.user_tower(torch.cat([self.user_table(user), self.city_table(city)], dim=-1))
        item_vector = self.item_tower(torch.cat([self.item_table(item), dense], dim=-1))
        return (user_vector * item_vector).sum(-1) + self.bias


def two_tower_inputs(rows: int, seed: int) -> dict[str, torch.Tensor]:
    features = feature_dict(rows, seed)
    return {name: features[name] for name in ("user", "city", "item", "dense")}


class TupleOutputModel(nn.Module):
    """Two tasks, returned as a tuple of a tensor and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARIES["item"], WIDTH)
        self.shared = nn.Linear(WIDTH + DENSE, 32)
        self.click = _mlp(32, 16, 1)
        self.buy = _mlp(32, 16, 1)

    def forward(self, item: torch.Tensor, dense: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        hidden = torch.relu(self.shared(torch.cat([self.table(item), dense], dim=-1)))
        return torch.sigmoid(self.click(hidden)), {"buy": self.buy(hidden), "hidden": hidden}


class DictOutputModel(TupleOutputModel):
    """The same tasks, returned as a dict."""

    def forward(self, item: torch.Tensor, dense: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        click, others = super().forward(item, dense)
        return {"click": click, **others}


def item_then_dense(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    features = feature_dict(rows, seed)
    return features["item"], features["dense"]


class LinearTower(nn.Module):
    """No table at all: Linear, ReLU, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 32)
        self.second = nn.Linear(32, 12)

    def forward(self, dense: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(dense)))


def dense_rows(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 20, generator=_generator(rows, seed))


class BagModel(nn.Module):
    """Multi-valued fields pooled by ``nn.EmbeddingBag`` and by hand over a padded table."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARIES["item"], WIDTH, mode="sum")
        self.tags = nn.Embedding(VOCABULARIES["city"], WIDTH, padding_idx=0)
        self.mlp = _mlp(2 * WIDTH, 32, 1)

    def forward(self, items: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        present = (tags != 0).unsqueeze(-1)
        pooled = (self.tags(tags) * present).sum(1) / present.sum(1).clamp(min=1)
        return self.mlp(torch.cat([self.bag(items), pooled], dim=-1))


def bag_inputs(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = _generator(rows, seed)
    items = _ids(rows, VOCABULARIES["item"], generator, 5)
    return items, _ids(rows, VOCABULARIES["city"], generator, 4)


class MultiHotDLRM(nn.Module):
    """DLRM: bags of several ids per field, a bottom MLP of the dense features, all dot products, a top MLP."""

    def __init__(self) -> None:
        super().__init__()
        modes = {"user": "sum", "item": "mean", "city": "sum"}
        self.bags = nn.ModuleDict(
            {name: nn.EmbeddingBag(VOCABULARIES[name], WIDTH, mode=mode) for name, mode in modes.items()}
        )
        self.bottom = _mlp(DENSE, 16, WIDTH)
        vectors = len(modes) + 1
        self.pairs: torch.Tensor
        self.register_buffer("pairs", torch.triu_indices(vectors, vectors, offset=1))
        self.top = _mlp(WIDTH + self.pairs.shape[1], 32, 1)

    def forward(self, dense: torch.Tensor, ids: dict[str, torch.Tensor], city_weights: torch.Tensor) -> torch.Tensor:
        low = self.bottom(dense)
        pooled = [
            bag(ids[name], per_sample_weights=city_weights if name == "city" else None)
            for name, bag in self.bags.items()
        ]
        vectors = torch.stack([low, *pooled], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([low, products], dim=1)))


def multi_hot_inputs(rows: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    generator = _generator(rows, seed)
    lengths = {"user": 1, "item": 4, "city": 3}
    ids = {name: _ids(rows, VOCABULARIES[name], generator, length) for name, length in lengths.items()}
    return torch.randn(rows, DENSE, generator=generator), ids, torch.rand(rows, lengths["city"], generator=generator)


class HandMadeLookups(nn.Module):
    """Tables kept as plain parameters and read by index, by ``index_select`` and by ``gather``."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.city, self.hour = (
            nn.Parameter(torch.randn(VOCABULARIES[name], WIDTH)) for name in ("item", "city", "hour")
        )
        self.mlp = _mlp(3 * WIDTH + DENSE, 32, 1)

    def forward(self, item: torch.Tensor, city: torch.Tensor, hour: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        rows = [
            self.item[item],
            torch.index_select(self.city, 0, city),
            torch.gather(self.hour, 0, hour.unsqueeze(1).expand(-1, WIDTH)),
        ]
        return self.mlp(torch.cat([*rows, dense], dim=1))


def hand_made_inputs(rows: int, seed: int) -> tuple[torch.Tensor, ...]:
    features = feature_dict(rows, seed)
    return tuple(features[name] for name in ("item", "city", "hour", "dense"))


class FactorizationMachine(nn.Module):
    """FM by (sum)^2 - sum(^2) over one stacked table beside an MLP over the same lookups."""

    def __init__(self) -> None:
        super().__init__()
        sizes = list(VOCABULARIES.values())
        self.table = nn.Embedding(sum(sizes), WIDTH)
        self.weights = nn.Embedding(sum(sizes), 1)
        self.starts: torch.Tensor
        self.register_buffer("starts", torch.tensor([0, *sizes[:-1]]).cumsum(0))
        self.mlp = _mlp(len(sizes) * WIDTH + DENSE, 32, 1)

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        vectors = self.table(ids + self.starts)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True)
        deep = self.mlp(torch.cat([vectors.flatten(1), dense], dim=1))
        return torch.sigmoid(pairs + deep + self.weights(ids + self.starts).sum(1))


def plain_entries() -> list[ZooEntry]:
    """Every plain model."""
    models: list[tuple[type[nn.Module], Any]] = [
        (DictInputModel, feature_dict),
        (KeywordInputModel, keyword_inputs),
        (VariadicKeywordModel, item_and_dense),
        (StackedTableModel, stacked_ids),
        (SharedTableModel, two_cities),
        (MixedWidthModel, ids_and_dense),
        (TwoTowerModel, two_tower_inputs),
        (TupleOutputModel, item_then_dense),
        (DictOutputModel, item_then_dense),
        (LinearTower, dense_rows),
        (BagModel, bag_inputs),
        (MultiHotDLRM, multi_hot_inputs),
        (HandMadeLookups, hand_made_inputs),
        (FactorizationMachine, ids_and_dense),
    ]
    return [ZooEntry(model.__name__, model, inputs) for model, inputs in models]
