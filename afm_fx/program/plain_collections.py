"""Ragged lists of ids as tensors of a fixed width, and TorchRec's collections of tables on them.

A ``KeyedJaggedTensor`` holds, for every feature and row, a list of ids of any length. Exported graphs want shapes that
do not depend on the data, so each feature becomes ids ``[batch, length]``, filled up with id 0, and where lists are
shorter than that, their lengths ``[batch]``: places at or beyond the length count nothing.

A bag of padded ids is ``sum_i w_i T[id_i]`` with ``w_i = 0`` where there is no id, ``1`` or the id's weight where there
is one, and that over the bag's length for a mean; an empty bag is zero. It stays one ``embedding_bag``, so that codes
are made for what the model sees, pooled rows. A feature that has exactly one id in every row is a plain lookup.
The collections have the same parameters under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from afm_fx.errors import BatchError, ModelError

LENGTHS, WEIGHTS = "{}.lengths", "{}.weights"
"""Names of the tensors beside a feature's ids."""


@dataclass(frozen=True)
class Padding:
    """The fixed form of one feature's lists.

    Attributes:
        ragged: whether rows may hold fewer; their number is then an input of its own.
        weighted: whether every id has a weight; absent ids weigh 0, and their number is no input.
    """

    length: int
    ragged: bool
    weighted: bool = False


def padded(jagged: Any, paddings: Mapping[str, Padding]) -> dict[str, Tensor]:
    """A ``KeyedJaggedTensor`` as tensors of a fixed width; features without a padding are left out.

    Returns:
        By feature: ids int64 [batch, length]; beside them ``FEATURE.lengths`` int64 [batch] where it is ragged, or
        ``FEATURE.weights`` [batch, length] where it is weighted.

    Raises:
        BatchError: a list is longer or shorter than the padding allows, or weights are missing; feature and row are
            named.
    """
    tensors: dict[str, Tensor] = {}
    for name, lists in jagged.to_dict().items():
        if name not in paddings:
            continue
        padding, lengths = paddings[name], lists.lengths().long()
        _check_lengths(name, lengths, padding)
        present = _present(lengths, padding.length)
        tensors[name] = _filled(lists.values().long(), present)
        if padding.weighted:
            weights = lists.weights_or_none()
            if weights is None:
                raise BatchError(f"feature '{name}' has no weights, and the model pools it with weights")
            tensors[WEIGHTS.format(name)] = _filled(weights, present)
        elif padding.ragged:
            tensors[LENGTHS.format(name)] = lengths
    return tensors


class PlainBags(nn.Module):
    """An ``EmbeddingBagCollection`` that takes a dict of padded ids (:func:`padded`).

    Args:
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
        if self._weighted:
            weights = features[WEIGHTS.format(name)]
        elif padding.ragged:
            lengths = features[LENGTHS.format(name)]
            weights = _present(lengths, padding.length).to(torch.float32)
            if bag.mode == "mean":
                weights = weights / lengths.unsqueeze(1).clamp(min=1)
        elif padding.length == 1:
            return _single_precision(F.embedding(ids, table).squeeze(1))
        else:
            return _single_precision(F.embedding_bag(ids, table, mode=bag.mode))
        return _single_precision(F.embedding_bag(ids, table, mode="sum", per_sample_weights=weights.to(table.dtype)))


class PlainEmbeddings(nn.Module):
    """An ``EmbeddingCollection`` that takes a dict of padded ids and returns :class:`PaddedRows` by feature."""

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
        by_feature = {}
        for config, names in zip(self._configs, self._names, strict=True):
            for feature, name in zip(config.feature_names, names, strict=True):
                rows = _single_precision(F.embedding(features[feature], self.embeddings[config.name].weight))
                lengths = features[LENGTHS.format(feature)] if self._paddings[feature].ragged else None
                by_feature[name] = PaddedRows(rows, lengths)
        return by_feature


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
            rows = torch.where(_present(self._lengths, length).unsqueeze(2), rows, padding_value)
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


def _present(lengths: Tensor, length: int) -> Tensor:
    """Which places [batch, length] hold an id."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


def _filled(values: Tensor, present: Tensor) -> Tensor:
    """The values of all lists, one after the other, at their places; 0 elsewhere."""
    filled = values.new_zeros(present.shape)
    filled[present] = values
    return filled


def _check_lengths(name: str, lengths: Tensor, padding: Padding) -> None:
    wrong = lengths > padding.length
    if not padding.ragged:
        wrong |= lengths < padding.length
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        allowed = f"at most {padding.length}" if padding.ragged else f"exactly {padding.length}"
        raise BatchError(
            f"row {row} of feature '{name}' has {int(lengths[row])} ids, the plain model takes {allowed}: give "
            f"max_lengths={{{name!r}: ...}}, the most that a row may have, when the model is made plain"
        )


def _single_precision(rows: Tensor) -> Tensor:
    """Rows of half-precision tables as float32, which is what TorchRec gives."""
    return rows.float() if rows.dtype in {torch.float16, torch.bfloat16} else rows
