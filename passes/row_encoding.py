"""Rows of a table as codes, a block at a time: ``z = B y + A^T o`` for every row ``y``.

Whoever holds a part of a table, one shard or one block of a file, encodes that part by itself: a row's code depends
on that row only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS_PER_BLOCK = 1 << 16
"""Rows encoded at a time, so that the float64 copy of a block stays small."""


def encode_rows(
    encoder: Tensor, shift: Tensor | None, parts: Sequence[Tensor], *, dtype: torch.dtype | None = None
) -> Tensor:
    """The codes of rows, on the rows' device.

    Args:
        encoder: [r, n], ``B``.
        shift: [r], ``A^T o``; None where nothing is added.
        parts: [rows, n_i] each, whose columns side by side are the n features (one tensor for a plain table).
        dtype: of the codes; the rows' own if left out.

    Returns:
        [rows, r], computed in float64.
    """
    first = parts[0]
    codes = torch.empty((first.shape[0], encoder.shape[0]), dtype=dtype or first.dtype, device=first.device)
    basis = encoder.to(device=first.device, dtype=torch.float64).mT
    added = None if shift is None else shift.to(device=first.device, dtype=torch.float64)
    for start in range(0, first.shape[0], ROWS_PER_BLOCK):
        rows = slice(start, start + ROWS_PER_BLOCK)
        block = parts[0][rows] if len(parts) == 1 else torch.cat([part[rows] for part in parts], dim=1)
        made = block.to(torch.float64) @ basis
        codes[rows] = made if added is None else made + added
    return codes
