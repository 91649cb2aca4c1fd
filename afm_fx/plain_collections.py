"""TorchRec's collections of tables on tensors of a fixed width, with the same parameters under the same names.

A bag of padded ids is ``sum_i w_i T[id_i]`` with ``w_i = 0`` where there is no id, ``1`` or the id's weight where there
is one, and that over the bag's length for a mean; an empty bag is zero. It stays one ``embedding_bag``, so that codes
are made for what the model sees, pooled rows. A feature that has exactly one id in every row is a plain lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from afm_fx.errors import ModelError
from afm_fx.padded_bags import LENGTHS, WEIGHTS, Padding


class PlainBags(nn.Module):
    """An ``EmbeddingBagCollection`` that takes a dict of padded ids (:func:`afm_fx.padded_bags.padded`).

    Args:
        collection: whose tables it shares.
        paddings: by feature.
        keyed_tensor: makes what the collection returns of its keys, widths and values.
    """

    def __init__(self, collection: Any, paddings: Mapping[str, Padding], keyed_tensor: Callable[..., Any]) -> None:
        super().__init__()
        self.embedding_bags = collection.embedding_bags
        self._configs = collection.embedding_bag_configs()
        self._weighted = bool(collection.is_weighted())
        self._paddings = dict(paddings)
        self._keys = list(collection._embedding_names)
        self._keyed_tensor = keyed_tensor

    def embedding_bag_configs(self) -> Any:
        """The collection's configurations."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether ids have weights."""
        return self._weighted

    def forward(self, features: Mapping[str, Tensor]) -> Any:
        """The ``KeyedTensor`` of the pooled rows, in the order of the tables and their features."""
        pooled = [
            self._pooled(self.embedding_bags[config.name], features, name)
            for config in self._configs
            for name in config.feature_names
        ]
        widths = [config.embedding_dim for config in self._configs for _ in config.feature_names]
        return self._keyed_tensor(keys=self._keys, length_per_key=widths, values=torch.cat(pooled, dim=1))

    def _pooled(self, bag: Any, features: Mapping[str, Tensor], name: str) -> Tensor:
        table, padding, ids = bag.weight, self._paddings[name], features[name]
        if padding.single:
            return _single_precision(F.embedding(ids, table).squeeze(1))
        weights = self._weights(features, name, padding, mean=bag.mode == "mean")
        if weights is None:
            return _single_precision(F.embedding_bag(ids, table, mode=bag.mode))
        return _single_precision(F.embedding_bag(ids, table, mode="sum", per_sample_weights=weights.to(table.dtype)))

    def _weights(self, features: Mapping[str, Tensor], name: str, padding: Padding, *, mean: bool) -> Tensor | None:
        """[batch, length], None where every id counts alike."""
        if self._weighted:
            return features[WEIGHTS.format(name)]
        if not padding.ragged:
            return None
        lengths = features[LENGTHS.format(name)].unsqueeze(1)
        present = (torch.arange(padding.length, device=lengths.device) < lengths).to(torch.float32)
        return present / lengths.clamp(min=1) if mean else present


class PlainEmbeddings(nn.Module):
    """An ``EmbeddingCollection`` that takes a dict of padded ids and returns :class:`PaddedRows` by feature.

    Args:
        collection: whose tables it shares.
        paddings: by feature.
    """

    def __init__(self, collection: Any, paddings: Mapping[str, Padding]) -> None:
        super().__init__()
        self.embeddings = collection.embeddings
        self._configs = collection.embedding_configs()
        self._names = collection.embedding_names_by_table()
        self._paddings = dict(paddings)

    def embedding_configs(self) -> Any:
        """The collection's configurations."""
        return self._configs

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, PaddedRows]:
        """The rows of every feature."""
        found = {}
        for config, names in zip(self._configs, self._names, strict=True):
            for feature, name in zip(config.feature_names, names, strict=True):
                ids, padding = features[feature], self._paddings[feature]
                rows = _single_precision(F.embedding(ids, self.embeddings[config.name].weight))
                lengths = features[LENGTHS.format(feature)] if padding.ragged else None
                found[name] = PaddedRows(rows, lengths)
        return found


class PaddedRows:
    """The rows of one feature's ids, in place of a ``JaggedTensor``.

    Args:
        rows: [batch, length, n].
        lengths: [batch], None where every row of the batch has all ``length`` ids.
    """

    def __init__(self, rows: Tensor, lengths: Tensor | None) -> None:
        self._rows, self._lengths = rows, lengths

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """[batch, desired_length, n], with the value where there is no id."""
        rows, length = self._rows, self._rows.shape[1]
        if self._lengths is not None:
            present = torch.arange(length, device=rows.device) < self._lengths.unsqueeze(1)
            rows = torch.where(present.unsqueeze(2), rows, padding_value)
        if desired_length is None or desired_length == length:
            return rows
        if desired_length < length:
            return rows[:, :desired_length]
        return F.pad(rows, (0, 0, 0, desired_length - length), value=padding_value)

    def lengths(self) -> Tensor:
        """[batch]."""
        if self._lengths is not None:
            return self._lengths
        return torch.full_like(self._rows[:, 0, 0], self._rows.shape[1], dtype=torch.int64)

    def values(self) -> Tensor:
        """[batch x length, n], where every row of the batch has all its ids.

        Raises:
            ModelError: rows are ragged, so how many there are depends on the data.
        """
        if self._lengths is not None:
            raise ModelError(
                "the model reads the rows of a ragged feature one after the other (JaggedTensor.values), whose number "
                "depends on the data: let it read to_padded_dense(length)"
            )
        return self._rows.flatten(0, 1)


def _single_precision(rows: Tensor) -> Tensor:
    """Rows of half-precision tables as float32, which is what TorchRec gives."""
    return rows.float() if rows.dtype in {torch.float16, torch.bfloat16} else rows
