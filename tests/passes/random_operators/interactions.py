"""Products of features with features, and attention."""

from __future__ import annotations

import math

from torch import nn

from tests.passes.random_models import Draft, Step
from tests.passes.random_operators.registry import fields_only, operator


@operator("interactions")
def product(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    return None if value is None else f"{value.name} * {draft.pick_like(value, step.b).name}"


@operator("interactions")
def factorization_machine(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, fields_only)
    if value is None:
        return None
    name = value.name
    power = ("{}.pow(2)", "{}.square()", "{0} * {0}")[step.n % 3]
    pairs = f"{power.format(f'{name}.sum(1)')} - ({power.format(name)}).sum(1)"
    return f"0.5 * ({pairs})" if step.b % 2 else f"0.5 * ({pairs}).sum(1, keepdim=True)"


@operator("interactions")
def inner_product(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    other = draft.pick_like(value, step.b)
    if step.n % 3 == 2 and value.axes == 1:
        return f"torch.bmm({value.name}.unsqueeze(1), {other.name}.unsqueeze(2)).squeeze(1)"
    return f"({value.name} * {other.name}).sum(-1, keepdim={step.n % 2 == 0})"


@operator("interactions")
def dot_interaction(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes == 2 and value.row[0] > 1)
    if value is None:
        return None
    other = draft.pick(step.b, lambda each: each.axes == 2 and each.row[1] == value.row[1]) or value
    products = f"torch.bmm({value.name}, {other.name}.transpose(1, 2))"
    fields = value.row[0]
    if other is not value or step.n % 3 == 0:
        return products
    lower = [(row, column) for row in range(fields) for column in range(row)]
    if step.n % 3 == 1:
        return f"{products}[:, {[row for row, _ in lower]}, {[column for _, column in lower]}]"
    rows = f"{value.name}[:, {[row for row, _ in lower]}]"
    return f"({rows} * {value.name}[:, {[column for _, column in lower]}]).sum(-1)"


@operator("interactions")
def outer_product(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes == 1)
    other = draft.pick(step.b, lambda value: value.axes == 1)
    if value is None or other is None:
        return None
    if step.n % 2:
        return f"{value.name}.unsqueeze(2) * {other.name}.unsqueeze(1)"
    return f"torch.einsum('bn,bm->bnm', {value.name}, {other.name})"


@operator("interactions")
def bilinear(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    width = value.row[-1]
    mapped = f"{draft.linear(width, width, bias=False)}({value.name})"
    return f"{mapped} * {draft.pick_like(value, step.b).name}"


@operator("interactions")
def matrix_cross(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    other = draft.pick_like(value, step.b)
    return f"{value.name} * {draft.linear(value.row[-1], value.row[-1])}({other.name}) + {other.name}"


@operator("interactions")
def attention(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, fields_only)
    if value is None:
        return None
    width, inner = value.row[-1], 1 + step.b % 4
    query, key, gives = (f"{draft.linear(width, inner, bias=step.n % 2 == 0)}({value.name})" for _ in range(3))
    if step.n % 3 == 0:
        return f"F.scaled_dot_product_attention({query}, {key}, {gives})"
    if step.n % 3 == 1:
        return f"torch.softmax(torch.einsum('bik,bjk->bij', {query}, {key}), -1) @ {gives}"
    return f"torch.bmm(torch.bmm({query}, {key}.transpose(1, 2)) / {math.sqrt(inner)}, {gives})"


@operator("interactions")
def multi_head_attention(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes == 2 and value.row[1] % 2 == 0)
    if value is None:
        return None
    layer = draft.part(nn.MultiheadAttention(value.row[1], 2, batch_first=True), f"{value.row[1]}, 2")
    query = draft.pick_like(value, step.b).name
    return f"{layer}({query}, {value.name}, {value.name}, need_weights={step.n % 2 == 0})[0]"


@operator("interactions")
def target_attention(draft: Draft, step: Step) -> str | None:
    """DIN: scores from history and target, then a weighted sum."""
    value = draft.pick(step.a, lambda value: value.axes == 2)
    if value is None:
        return None
    target = draft.pick(step.b, lambda each: each.row == value.row[1:])
    if target is None:
        return None
    wide = f"{target.name}.unsqueeze(1).expand(-1, {value.row[0]}, -1)"
    pair = f"torch.cat([{wide}, {value.name}, {wide} - {value.name}, {wide} * {value.name}], -1)"
    score = f"{draft.linear(4 * value.row[1], 1)}({pair})"
    return f"torch.matmul({score}.softmax(1).transpose(1, 2), {value.name}).squeeze(1)"


@operator("interactions")
def compressed_interaction(draft: Draft, step: Step) -> str | None:
    """xDeepFM: outer products over fields, mixed by a convolution."""
    value = draft.pick(step.a, lambda value: value.axes == 2 and value.row[0] <= 4)
    if value is None:
        return None
    fields, width = value.row
    outer = f"torch.einsum('bhd,bmd->bhmd', {value.name}, {value.name}).reshape(-1, {fields * fields}, {width})"
    layer = draft.part(nn.Conv1d(fields * fields, 1 + step.b % 3, 1), f"{fields * fields}, {1 + step.b % 3}, 1")
    return f"{layer}({outer})"
