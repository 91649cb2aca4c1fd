"""Ragged lists of ids as tensors of a fixed width.

A ``KeyedJaggedTensor`` holds, for every feature and row, a list of ids of any length. Exported graphs want shapes that
do not depend on the data, so each feature becomes ids ``[batch, length]``, filled up with id 0, and where lists are
shorter than that, their lengths ``[batch]``: places at or beyond the length count nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afm_fx.errors import BatchError

LENGTHS, WEIGHTS = "{}.lengths", "{}.weights"
"""Names of the tensors beside a feature's ids."""


@dataclass(frozen=True)
class Padding:
    """The fixed form of one feature's lists.

    Attributes:
        length: ids per row.
        ragged: whether rows may hold fewer; their number is then an input of its own.
        weighted: whether every id has a weight; absent ids weigh 0, and their number is no input.
    """

    length: int
    ragged: bool
    weighted: bool = False

    @property
    def single(self) -> bool:
        """Whether every row holds exactly one id without a weight: a plain lookup."""
        return self.length == 1 and not self.ragged and not self.weighted


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
    for name, each in jagged.to_dict().items():
        if name not in paddings:
            continue
        padding, lengths = paddings[name], each.lengths().long()
        _check(name, lengths, padding)
        present = _present(lengths, padding.length)
        tensors[name] = _filled(each.values().long(), present)
        if padding.weighted:
            weights = each.weights_or_none()
            if weights is None:
                raise BatchError(f"feature '{name}' has no weights, and the model pools it with weights")
            tensors[WEIGHTS.format(name)] = _filled(weights, present)
        elif padding.ragged:
            tensors[LENGTHS.format(name)] = lengths
    return tensors


def _present(lengths: Tensor, length: int) -> Tensor:
    """Which places [batch, length] hold an id."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


def _filled(values: Tensor, present: Tensor) -> Tensor:
    """The values of all lists, one after the other, at their places; 0 elsewhere."""
    filled = values.new_zeros(present.shape)
    filled[present] = values
    return filled


def _check(name: str, lengths: Tensor, padding: Padding) -> None:
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
