"""Tables as codes: ``z = B y + A^T o`` for every row ``y``, computed in float64, a block of rows at a time.

A row's code depends on that row only, so whoever holds a part of a table, a shard or a block of a file, encodes that
part alone. A table ``T`` whose rows are sharded gives codes ``T B^T`` that are sharded in the same way, without a word
between the processes. Where columns are sharded, ``T B^T = sum_s T_s B_s^T`` over the shards of columns: one reduction
of the narrow partial products, after which rows are sharded in the columns' place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from passes.graph import TableIndexError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ROWS_PER_BLOCK = 1 << 16
"""Rows encoded at a time, so that the float64 copy of a block stays small."""


def encode_table(encoder: Tensor, shift: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    """The codes [V, r] of a table, on its device, in its number format and, where it is sharded, on its mesh.

    Args:
        encoder: [r, n], ``B``.
        shift: [r], ``A^T o``; None where nothing is added.
        parts: [V, n_i] each, whose columns side by side are the n features (one tensor for a plain table). ``DTensor``
            may be sharded by rows, replicated or, a single one, sharded by columns: codes have the table's
            placements, ``Shard(0)`` in the place of ``Shard(1)``.

    Raises:
        TableIndexError: the parts are placed differently from each other, or in a way that has no rows.
    """
    if not any(map(is_sharded, parts)):
        return _encode_rows(encoder, shift, parts, parts[0].dtype)
    table: DTensor = next(filter(is_sharded, parts))  # type: ignore[assignment]
    mesh, placements = table.device_mesh, table.placements
    placed = [(getattr(part, "device_mesh", None), getattr(part, "placements", "not sharded")) for part in parts]
    if any(place != (mesh, placements) for place in placed):
        raise TableIndexError(f"tables under one code must be sharded alike: {[str(each) for _, each in placed]}")
    if any(placement.is_partial() for placement in placements):
        raise TableIndexError("a table whose shards are still to be added up has no rows yet; redistribute it first")
    if any(map(_cuts_columns, placements)):
        if len(parts) > 1:
            raise TableIndexError("tables under one code may be sharded by rows only; redistribute them to Shard(0)")
        return _encode_columns(encoder, shift, table)
    rows = [_rows_here(part) for part in parts]  # type: ignore[arg-type]
    return _placed(_encode_rows(encoder, shift, rows, table.dtype), table, placements)


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``; its module need not be loaded for that: before, nobody holds one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def replicated(tensor: Tensor, like: DTensor) -> DTensor:
    """A tensor that every process of a mesh holds whole and alike."""
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415 - only where tables are sharded

    mesh = like.device_mesh
    return DTensor.from_local(tensor.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)


def _encode_rows(encoder: Tensor, shift: Tensor | None, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    first = parts[0]
    if len(first) > 1 and all(part.stride(0) == 0 for part in parts):  # one row in memory, expanded: so are its codes
        return _encode_rows(encoder, shift, [part[:1] for part in parts], dtype).expand(len(first), -1)
    codes = torch.empty((len(first), encoder.shape[0]), dtype=dtype, device=first.device)
    basis = encoder.to(device=first.device, dtype=torch.float64).mT
    added = None if shift is None else shift.to(device=first.device, dtype=torch.float64)
    for start in range(0, len(first), ROWS_PER_BLOCK):
        rows = slice(start, start + ROWS_PER_BLOCK)
        block = first[rows] if len(parts) == 1 else torch.cat([part[rows] for part in parts], dim=1)
        products = block.to(torch.float64) @ basis
        codes[rows] = products if added is None else products + added
    return codes


def _encode_columns(encoder: Tensor, shift: Tensor | None, table: DTensor) -> DTensor:
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor  # noqa: PLC0415 - see above

    rows_or_columns = [(placement, _cuts_columns(placement)) for placement in table.placements]
    of_encoder = [placement if cut else Replicate() for placement, cut in rows_or_columns]
    here = distribute_tensor(encoder.detach(), table.device_mesh, of_encoder, src_data_rank=None).to_local()
    products = _encode_rows(here, None, [_rows_here(table)], torch.float64)
    pending = [Partial() if cut else placement for placement, cut in rows_or_columns]
    wanted = [Shard(0) if cut else placement for placement, cut in rows_or_columns]
    codes = _placed(products, table, pending).redistribute(placements=wanted).to_local()
    if shift is not None:
        codes = codes + shift.to(device=codes.device, dtype=torch.float64)
    return _placed(codes.to(table.dtype), table, wanted)


def _cuts_columns(placement: Any) -> bool:
    """Whether the last of a table's two axes is sharded."""
    return getattr(placement, "dim", 0) in {1, -1}


def _rows_here(part: DTensor) -> Tensor:
    """What this process holds of a table, [rows, n]."""
    local = part.to_local()
    if not hasattr(local, "local_shards"):
        return local
    shards = local.local_shards()  # TorchRec wraps the pieces of a table that a process holds
    if len(shards) > 1:
        raise TableIndexError("a process that holds several pieces of one table is not supported")
    return shards[0] if shards else torch.empty((0, part.shape[1]), dtype=part.dtype)


def _placed(local: Tensor, table: DTensor, placements: Sequence[Any]) -> DTensor:
    """This process's part of the codes [V, r] of a table."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - see above

    rank = local.shape[1]
    shape = torch.Size((table.shape[0], rank))
    return DTensor.from_local(local, table.device_mesh, placements, run_check=False, shape=shape, stride=(rank, 1))
