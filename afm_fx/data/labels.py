"""Labels beside batches: pairs of inputs and what was observed, one column a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from afm_fx.errors import BatchError
from afm_fx.program import Inputs


def split_pair(given: Any, name: str) -> tuple[Inputs, Any]:
    """Inputs and labels of a batch that messages call ``name``.

    Raises:
        BatchError: it is no pair.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        size = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise BatchError(f"{name}: with labels, batches are pairs (inputs, labels); got a {type(given).__name__}{size}")
    return given[0], given[1]


def checked_labels(given: Any, rows: int, name: str) -> Tensor:
    """Labels as [rows, columns] in float32.

    Raises:
        BatchError: they are no numbers from 0 to 1, or there are not as many as rows.
    """
    try:
        labels = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BatchError(f"{name}: the labels are a {type(given).__name__}, no tensor: {error}") from error
    if labels.dim() not in (1, 2) or labels.shape[0] != rows:
        raise BatchError(
            f"{name}: the labels have shape {list(labels.shape)}, they must be [{rows}] or [{rows}, tasks]"
        )
    labels = labels.detach().reshape(rows, -1)
    wrong = ~((labels >= 0) & (labels <= 1))
    if bool(wrong.any()):
        row = int(wrong.any(dim=1).nonzero()[0])
        raise BatchError(f"{name}, row {row}: labels lie between 0 and 1, got {labels[row].tolist()}")
    return labels
