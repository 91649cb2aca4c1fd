"""What tests of the vocabulary run on: functions of looked-up values, by what becomes of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.passes.test_sink_codes import ALL, FIELDS, WIDTH, Looked

Function = Callable[[Looked], Tensor]


def keep(x: Looked, fields: int = 3) -> Tensor:
    """A mask [batch, fields]."""
    return x.dense[:, :fields] > 0


def weights(x: Looked) -> Tensor:
    """Attention weights [batch, 3, 3]."""
    return (x.dense[:, :, None] * x.dense[:, None]).softmax(-1)


def per_field(x: Looked) -> Tensor:
    """A constant [FIELDS, WIDTH, 2]."""
    rows = x.narrow.weight.flatten()
    return torch.cat([rows, rows[: FIELDS * WIDTH * 2 - rows.numel()]]).reshape(FIELDS, WIDTH, 2)


def capsules(x: Looked, count: int, positions: int) -> Tensor:
    """Routing matrices [1, count, positions, 1, WIDTH]."""
    return per_field(x).flatten()[: count * positions * WIDTH].reshape(1, count, positions, 1, WIDTH)


def normalized(features: Tensor, x: Looked, *, affine: bool = True) -> Tensor:
    """Batch norm in eval mode with constants made of the case's weights."""
    channels = features.shape[1]
    rows = x.narrow.weight.flatten().repeat(2)[:channels]
    scale, shift = (rows + 1.5, rows.flip(0)) if affine else (None, None)
    still = rows.detach()
    return nn.functional.batch_norm(features, still * 0.5, still.abs() + 0.1, scale, shift)


def beside_one(x: Looked) -> Tensor:
    """A history with a field of the target in every row, [batch, FIELDS, 2 WIDTH]."""
    return torch.cat([x.stacked, x.own[0].unsqueeze(1).expand(-1, FIELDS, -1)], -1)


ON_CODES: dict[str, tuple[Function, int, str]] = {
    "masked_fill with zero": (
        lambda x: x.linear(x.stacked[:, :3].masked_fill(keep(x)[:, :, None], 0.0).sum(1)),
        WIDTH,
        "gate",
    ),
    "masked_fill of a mask written out": (
        lambda x: x.linear(x.own[0].masked_fill(keep(x, 1).expand(-1, WIDTH), 0.0)),
        WIDTH,
        "gate",
    ),
    "where with zero": (lambda x: x.linear(torch.where(keep(x, 1), x.own[0], 0.0)), WIDTH, "gate"),
    "where with zero first": (lambda x: x.linear(torch.where(keep(x, 1), 0.0, x.own[0])), WIDTH, "gate"),
    "where with zeros": (
        lambda x: x.linear(torch.where(keep(x, 1), x.own[0], torch.zeros_like(x.own[0]))),
        WIDTH,
        "gate",
    ),
    "where of two tables": (lambda x: x.linear(torch.where(keep(x, 1), x.own[0], x.own[1])), WIDTH, "gate"),
    "where of two lookups of one table": (
        lambda x: x.linear(torch.where(keep(x, 1), x.stacked[:, 0], x.stacked[:, 1])),
        WIDTH,
        "gate",
    ),
    "where of one row and a sequence": (
        lambda x: x.linear(torch.where(keep(x)[:, :, None], x.stacked[:, :1], x.stacked[:, 1:]).sum(1)),
        WIDTH,
        "gate",
    ),
    "where of gated values": (
        lambda x: x.linear(torch.where(keep(x, 1), x.own[0] * x.dense[:, :1] + 1.0, x.own[1] * x.dense[:, 1:2])),
        WIDTH,
        "gate",
    ),
    "gate of a gated residual": (
        lambda x: x.linear((x.own[0] * x.dense[:, :1] + x.own[0]) * x.dense[:, 1:2] + x.own[0]),
        WIDTH,
        "gate",
    ),
    "gate per field of gated residuals": (
        lambda x: x.linear((torch.stack(x.own[:3], 1) * x.dense[:, :, None] + 0.5).flatten(1) * x.dense[:, :1]),
        3 * WIDTH,
        "gate",
    ),
    "gate per field of a gated sum": (
        lambda x: x.linear(((torch.stack(x.own[:3], 1) * x.dense[:, :1, None] + 0.5) * x.dense[:, :, None]).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "product with the number of rows": (lambda x: x.linear((x.own[0] + 1.0) * x.dense.shape[0]), WIDTH, "gate"),
    "quotient by the root of the number of rows": (
        lambda x: x.linear((torch.stack(x.own, 1) + 1.0).flatten(1) / x.dense.shape[0] ** 0.5),
        ALL,
        "gate",
    ),
    "capsules: a matrix per position, of stacked fields": (
        lambda x: x.linear(torch.matmul(capsules(x, 1, FIELDS), torch.stack(x.own, 1)[:, None, :, :, None]).flatten(1)),
        FIELDS,
        "linear",
    ),
    "sum of two gates": (
        lambda x: x.linear(x.own[0] * x.dense[:, :1] + x.own[1] * x.dense[:, 1:2]),
        WIDTH,
        "linear",
    ),
    "sum of two gates of one table with different offsets": (
        lambda x: x.linear((x.own[0] + 1.0) * x.dense[:, :1] + x.own[0] * x.dense[:, 1:2]),
        WIDTH,
        "linear",
    ),
    "weighted sum of fields": (
        lambda x: x.linear((torch.stack(x.own[:3], 1) * x.dense[:, :, None]).sum(1)),
        WIDTH,
        "linear",
    ),
    "query minus keys": (
        lambda x: x.linear((x.stacked[:, :1] - x.stacked[:, 1:]).flatten(1)),
        3 * WIDTH,
        "linear",
    ),
    "query of another table minus keys": (
        lambda x: x.linear((x.rows[0] - x.stacked[:, 1:]).sum(1)),
        WIDTH,
        "linear",
    ),
    "one field added to stacked fields": (
        lambda x: x.linear((x.rows[0] + torch.stack(x.own, 1)).flatten(1)),
        ALL,
        "linear",
    ),
    "gate that repeats the features": (
        lambda x: x.linear((x.own[0][:, None] * x.dense[:, :, None]).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "gate per field of a repeated field": (
        lambda x: x.linear((torch.stack([x.own[0], x.own[0], x.own[1]], 1) * x.dense[:, :, None]).flatten(1)),
        3 * WIDTH,
        "gate",
    ),
    "gate by an expanded mask": (
        lambda x: x.linear((x.stacked[:, :3] * keep(x)[:, :, None].repeat_interleave(WIDTH, 2).float()).sum(1)),
        WIDTH,
        "gate",
    ),
    "attention weights on a sequence": (
        lambda x: x.linear(torch.bmm(x.dense.softmax(1)[:, None], x.stacked[:, :3]).squeeze(1)),
        WIDTH,
        "linear",
    ),
    "attention weights of several queries": (
        lambda x: x.linear((weights(x) @ x.stacked[:, :3]).flatten(1)),
        3 * WIDTH,
        "linear",
    ),
    "attention weights on a gated sequence": (
        lambda x: x.linear((weights(x) @ (x.stacked[:, :3] * x.dense[:, :1, None] + 1.0)).flatten(1)),
        3 * WIDTH,
        "linear",
    ),
    "column times one number": (
        lambda x: x.linear(torch.matmul(x.own[0].unsqueeze(2), x.dense[:, :1, None]).squeeze(2)),
        WIDTH,
        "linear",
    ),
    "einsum of weights and a sequence": (
        lambda x: x.linear(torch.einsum("bk,bke->be", x.dense, x.stacked[:, :3])),
        WIDTH,
        "linear",
    ),
    "constant that mixes positions": (
        lambda x: x.linear(torch.matmul(x.narrow.weight[:, :FIELDS], x.stacked).flatten(1)),
        5 * WIDTH,
        "linear",
    ),
    "einsum with one constant for every field": (
        lambda x: x.linear(torch.einsum("bfe,he->bfh", torch.stack(x.own, 1), x.narrow.weight).flatten(1)),
        5 * FIELDS,
        "linear",
    ),
    "einsum with a constant per field": (
        lambda x: x.linear(torch.einsum("bfe,feh->bfh", torch.stack(x.own, 1), per_field(x)).flatten(1)),
        2 * FIELDS,
        "linear",
    ),
    "einsum with a constant per position": (
        lambda x: x.linear(torch.einsum("bte,teh->bth", x.stacked, per_field(x)).flatten(1)),
        2 * FIELDS,
        "linear",
    ),
    "attention with low-rank values": (
        lambda x: x.linear(
            nn.functional.scaled_dot_product_attention(weights(x), weights(x) + 1, x.stacked[:, :3]).flatten(1)
        ),
        3 * WIDTH,
        "linear",
    ),
    "attention with a mask that hides everything": (
        lambda x: x.linear(
            nn.functional.scaled_dot_product_attention(
                weights(x), weights(x) + 1, x.stacked[:, :3], attn_mask=keep(x)[:, :1, None].expand(-1, 3, 3)
            ).flatten(1)
        ),
        3 * WIDTH,
        "linear",
    ),
    "negative": (lambda x: x.linear(-x.own[0]), WIDTH, "linear"),
    "residuals of three": (lambda x: x.linear(x.own[0] + x.own[1] + x.own[2] * 2.0), WIDTH, "linear"),
    "sum over the batch": (lambda x: x.linear(x.stacked.sum(0)), WIDTH, "linear"),
    "batch norm of one table": (lambda x: x.linear(normalized(x.own[0], x)), WIDTH, "linear"),
    "batch norm of a concat with dense features": (
        lambda x: x.linear(normalized(torch.cat([x.own[0], x.dense, x.own[1]], 1), x)),
        2 * WIDTH + 3,
        "linear",
    ),
    "batch norm of fields": (lambda x: x.linear(normalized(torch.stack(x.own, 1), x).flatten(1)), ALL, "linear"),
    "batch norm of one table's fields": (lambda x: x.linear(normalized(x.stacked, x).flatten(1)), ALL, "linear"),
    "batch norm without scale of a gate": (
        lambda x: x.linear(normalized(x.own[0] * x.dense[:, :1], x, affine=False)),
        WIDTH,
        "linear",
    ),
    "quotient by an expanded count": (
        lambda x: x.linear(x.own[0] / (x.dense[:, :1].abs() + 1).expand(-1, WIDTH)),
        WIDTH,
        "gate",
    ),
}

ABSORBED: dict[str, tuple[Function, int]] = {
    "rows of a history beside an expanded field": (
        lambda x: x.linear(beside_one(x).reshape(-1, 2 * WIDTH)).reshape(-1, FIELDS * 7),
        2 * WIDTH,
    ),
    "rows of two fields each of a history beside an expanded field": (
        lambda x: x.linear(beside_one(x).reshape(-1, 2, WIDTH).flatten(1)).reshape(-1, FIELDS * 7),
        2 * WIDTH,
    ),
    "flip of fields": (lambda x: x.linear(torch.stack(x.own, 1).flip(1).flatten(1)), ALL),
    "flip of positions": (lambda x: x.linear(x.stacked.flip(1, 0).flatten(1)), ALL),
    "roll of fields": (lambda x: x.linear(torch.stack(x.own, 1).roll(1, 1).flatten(1)), ALL),
    "roll of positions": (lambda x: x.linear(x.stacked.roll(1, 1).flatten(1)), ALL),
    "index_select of fields": (
        lambda x: x.linear(torch.stack(x.own, 1).index_select(1, torch.tensor([2, 0])).flatten(1)),
        2 * WIDTH,
    ),
    "index of positions": (lambda x: x.linear(x.stacked[:, [3, 1]].flatten(1)), 2 * WIDTH),
    "index of fields, one twice": (lambda x: x.linear(torch.stack(x.own, 1)[:, [3, 1, 3]].flatten(1)), 3 * WIDTH),
    "repeat_interleave of fields": (
        lambda x: x.linear(torch.stack(x.own[:2], 1).repeat_interleave(2, 1).flatten(1)),
        ALL,
    ),
    "repeat_interleave of rows": (lambda x: x.linear(x.own[0].repeat_interleave(2, 0)), WIDTH),
    "tile": (lambda x: x.linear(x.stacked.tile(2, 1).flatten(1)), 2 * ALL),
    "expand_as of one row": (lambda x: x.narrow(x.stacked[:, :1].expand_as(x.stacked)), 1),
    "one row repeated beside a sequence": (
        lambda x: x.linear(torch.cat([x.rows[0].expand(-1, FIELDS, -1), x.stacked], -1).flatten(1)),
        2 * ALL,
    ),
    "movedim, swapaxes, narrow, tensor_split": (
        lambda x: x.linear(
            torch.cat([*x.stacked.movedim(0, 1).swapaxes(0, 1).narrow(1, 1, 3).tensor_split(2, 1)], 1).flatten(1)
        ),
        3 * WIDTH,
    ),
    "unflatten": (lambda x: x.linear(torch.cat(x.own, 1).unflatten(1, (FIELDS, WIDTH))[:, 1]), WIDTH),
    "the same number format": (lambda x: x.linear(x.own[0].to(x.dense.dtype)), WIDTH),
    "einsum with a constant": (lambda x: torch.einsum("be,he->bh", x.own[0], x.narrow.weight), 1),
    "einsum with a constant, heads apart": (
        lambda x: torch.einsum("bte,hde->bhtd", x.stacked, x.narrow.weight[:4].reshape(2, 2, WIDTH)),
        1,
    ),
    "contraction of columns": (
        lambda x: torch.tensordot(x.own[0].unsqueeze(2), x.narrow.weight[0][:, None], ([1], [0])),
        1,
    ),
    "einsum over fields and features": (
        lambda x: torch.einsum("bfe,feh->bh", torch.stack(x.own, 1), per_field(x)),
        1,
    ),
    "einsum over positions and features": (lambda x: torch.einsum("bfe,feh->hb", x.stacked, per_field(x)), 1),
    "bmm of one constant": (lambda x: torch.matmul(x.stacked, x.narrow.weight.T[None]), 1),
    "capsules: one matrix per capsule for every position": (
        lambda x: torch.matmul(capsules(x, 2, 1), x.stacked[:, None, :, :, None]).squeeze(-1),
        1,
    ),
    "product of a vector": (lambda x: torch.matmul(x.own[0], x.narrow.weight[0]), 1),
}

RESTORED: dict[str, tuple[Function, int, str]] = {
    "constants for copies of the features": (
        lambda x: torch.stack(x.own, 1)[:, None] * x.narrow.weight[:2, None],
        1,
        "gate",
    ),
    "layer norm": (lambda x: nn.functional.layer_norm(x.own[0], (WIDTH,)), 1, "nonlinear"),
    "group norm": (lambda x: nn.functional.group_norm(x.stacked, 2), 1, "nonlinear"),
    "standard deviation": (lambda x: x.own[0].std(1), 1, "nonlinear"),
    "largest": (lambda x: x.stacked.max(1)[0], 1, "nonlinear"),
    "max pool": (lambda x: nn.functional.max_pool1d(x.stacked, 2), 1, "nonlinear"),
    "softplus": (lambda x: nn.functional.softplus(x.own[0]), 1, "nonlinear"),
    "comparison": (lambda x: (x.own[0] > 0.5).float(), 1, "nonlinear"),
    "cumulative sum of positions": (lambda x: x.stacked.cumsum(1), 1, "linear"),
    "product over fields": (lambda x: x.stacked.prod(1), 1, "interaction"),
    "average pool": (lambda x: nn.functional.avg_pool1d(x.stacked, 2), 1, "linear"),
    "fields picked by data": (
        lambda x: torch.stack(x.own, 1)[:, x.dense[0].long().abs().clamp(max=1)],
        1,
        "move",
    ),
    "roll of everything": (lambda x: x.own[0].roll(1), 1, "move"),
    "rows of fields of several tables": (lambda x: torch.stack(x.own, 1).reshape(-1, WIDTH), 1, "move"),
    "halves of rows": (lambda x: x.stacked.reshape(-1, WIDTH // 2), 1, "move"),
    "windows": (lambda x: x.stacked.unfold(1, 2, 1), 1, "move"),
    "mask along the features": (lambda x: x.own[0].masked_fill(x.dense.repeat(1, 2) > 0, 0.0), 1, "interaction"),
    "attention weights on stacked fields": (
        lambda x: torch.bmm(x.dense[:, None], torch.stack(x.own[:3], 1)).squeeze(1),
        1,
        "linear",
    ),
    "masked_fill with infinity": (lambda x: x.own[0].masked_fill(keep(x, 1), -torch.inf), 1, "gate"),
    "masked_fill with a number": (lambda x: x.own[0].masked_fill(keep(x, 1), -1e9), 1, "gate"),
    "where with a constant vector": (lambda x: torch.where(keep(x, 1), x.own[0], x.narrow.weight[0]), 1, "gate"),
    "addmm": (lambda x: torch.addmm(x.narrow.weight[:, 0], x.own[0], x.narrow.weight.T, alpha=2.0), 1, "linear"),
    "sum with the number of rows": (lambda x: x.own[0] + x.dense.shape[0], 1, "linear"),
    "number of rows minus features": (lambda x: x.dense.shape[0] - x.own[0], 1, "linear"),
    "sum of so many features": (lambda x: torch.add(x.own[0], x.own[1], alpha=x.dense.shape[0]), 1, "linear"),
    "number of rows over features": (lambda x: x.dense.shape[0] / x.own[0], 1, "nonlinear"),
    "where with the number of rows": (lambda x: torch.where(keep(x, 1), x.own[0], x.dense.shape[0] * 0.5), 1, "gate"),
    "capsules: a matrix per capsule and position": (
        lambda x: torch.matmul(capsules(x, 2, FIELDS), x.stacked[:, None, :, :, None]).squeeze(-1),
        1,
        "linear",
    ),
    "addcmul": (lambda x: torch.addcmul(x.own[0], x.own[1], x.dense[:, :1], value=0.5), 1, "linear"),
    "lerp": (lambda x: torch.lerp(x.own[0], x.own[1], 0.3), 1, "linear"),
    "einsum of three tensors": (
        lambda x: torch.einsum("be,e,e->b", x.own[0], x.narrow.weight[0], x.narrow.weight[1]),
        1,
        "linear",
    ),
    "features that meet dense features": (
        lambda x: torch.einsum("be,be->b", x.own[0], x.dense.repeat(1, 2)),
        1,
        "interaction",
    ),
    "constant that mixes fields": (
        lambda x: torch.matmul(x.narrow.weight[:, :FIELDS], torch.stack(x.own, 1)),
        1,
        "linear",
    ),
    "attention whose query is low-rank": (
        lambda x: nn.functional.scaled_dot_product_attention(x.stacked, x.stacked, x.stacked),
        1,
        "interaction",
    ),
    "where with dense features": (lambda x: torch.where(keep(x, 1), x.own[0], x.dense.repeat(1, 2)), 1, "gate"),
}

CASES = ON_CODES | ABSORBED | RESTORED
