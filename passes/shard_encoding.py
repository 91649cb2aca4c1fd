"""Sharded tables as codes: every process encodes the rows that it holds, and the codes lie where the rows lie.

A table ``T`` whose rows are sharded gives codes ``T B^T`` whose rows are sharded in the same way, without a word
between the processes. Where columns are sharded, ``T B^T = sum_s T_s B_s^T`` over the shards of columns: one
reduction of the narrow partial products, after which rows are sharded in the columns' place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from passes.errors import TableIndexError
from passes.row_encoding import encode_rows

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MIXED = "tables under one code must be sharded alike"
PARTIAL = "a table whose shards are still to be added up has no rows yet; redistribute it first"
SEVERAL = "a process that holds several pieces of one table is not supported"
JOINT_COLUMNS = "tables under one code may be sharded by rows only; redistribute them to Shard(0)"


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``; its module need not be loaded for that: before, nobody holds one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def encode_table(encoder: Tensor, shift: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    """The codes [V, r] of a table, sharded or not; see :func:`passes.row_encoding.encode_rows`."""
    if any(map(is_sharded, parts)):
        return encode_shards(encoder, shift, parts)  # type: ignore[arg-type]
    return encode_rows(encoder, shift, parts)


def encode_shards(encoder: Tensor, shift: Tensor | None, parts: Sequence[DTensor]) -> DTensor:
    """The codes of a sharded table.

    Args:
        encoder: [r, n].
        shift: [r], added to every code, or None.
        parts: [V, n_i] each, whose columns side by side are the n features; sharded by rows, replicated or, for a
            single one, sharded by columns.

    Returns:
        [V, r] on the same mesh, with the table's placements; ``Shard(0)`` where that was ``Shard(1)``.

    Raises:
        TableIndexError: the parts are placed differently from each other, or in a way that has no rows.
    """
    first = parts[0]
    mesh, placements = first.device_mesh, first.placements
    if not all(is_sharded(part) and part.device_mesh == mesh and part.placements == placements for part in parts):
        raise TableIndexError(f"{MIXED}: {[str(getattr(part, 'placements', 'not sharded')) for part in parts]}")
    if any(placement.is_partial() for placement in placements):
        raise TableIndexError(PARTIAL)
    if any(map(_cuts_columns, placements)):
        return _encode_columns(encoder, shift, parts)
    codes = encode_rows(encoder, shift, [_local(part) for part in parts])
    return _placed(codes, first, placements)


def replicated(tensor: Tensor, like: DTensor) -> DTensor:
    """A tensor that every process of a mesh holds whole and alike."""
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415 - only where tables are sharded

    mesh = like.device_mesh
    return DTensor.from_local(tensor.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)


def _encode_columns(encoder: Tensor, shift: Tensor | None, parts: Sequence[DTensor]) -> DTensor:
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor  # noqa: PLC0415 - see above

    if len(parts) > 1:
        raise TableIndexError(JOINT_COLUMNS)
    table = parts[0]
    rows_or_columns = [(placement, _cuts_columns(placement)) for placement in table.placements]
    of_encoder = [placement if cut else Replicate() for placement, cut in rows_or_columns]
    mine = distribute_tensor(encoder.detach(), table.device_mesh, of_encoder, src_data_rank=None).to_local()
    products = encode_rows(mine, None, [_local(table)], dtype=torch.float64)
    pending = [Partial() if cut else placement for placement, cut in rows_or_columns]
    wanted = [Shard(0) if cut else placement for placement, cut in rows_or_columns]
    codes = _placed(products, table, pending).redistribute(placements=wanted).to_local()
    if shift is not None:
        codes = codes + shift.to(device=codes.device, dtype=torch.float64)
    return _placed(codes.to(table.dtype), table, wanted)


def _cuts_columns(placement: Any) -> bool:
    """Whether the last of a table's two axes is sharded."""
    return getattr(placement, "dim", 0) in {1, -1}


def _local(part: DTensor) -> Tensor:
    """The rows that this process holds, [rows, n]."""
    local = part.to_local()
    if not hasattr(local, "local_shards"):
        return local
    shards = local.local_shards()  # TorchRec wraps the pieces of a table that a process holds
    if len(shards) > 1:
        raise TableIndexError(SEVERAL)
    return shards[0] if shards else torch.empty((0, part.shape[1]), dtype=part.dtype)


def _placed(local: Tensor, table: DTensor, placements: Sequence[Any]) -> DTensor:
    """This process's part of the codes [V, r] of a table."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - see above

    rank = local.shape[1]
    shape = torch.Size((table.shape[0], rank))
    return DTensor.from_local(local, table.device_mesh, placements, run_check=False, shape=shape, stride=(rank, 1))
