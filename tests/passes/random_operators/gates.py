"""Masks, weights, counts, constants and pooling."""

from __future__ import annotations

from tests.passes.random_models import DENSE, HISTORY, Draft, Step, Value
from tests.passes.random_operators.registry import fields_only, operator, unary

unary(
    "gates",
    scaled="$ * 0.5",
    scaled_left="-2.0 * $",
    divided="$ / 3.0",
    negated="-$",
    scalar_gate="$ * dense.mean()",
)


def gate_shape(value: Value, gate: str) -> str:
    """A gate [batch, 1] brought to the axes of a value."""
    return gate + "".join(".unsqueeze(-1)" for _ in range(value.axes - 1))


@operator("gates")
def gate(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    column = step.b % DENSE
    gates = [
        f"dense[:, {column}:{column + 1}]",
        f"torch.sigmoid(dense[:, {column}:{column + 1}])",
        f"(dense[:, {column}:{column + 1}] > 0)",
        "history.sum(1, keepdim=True)",
        "dense.sum(1, keepdim=True)",
    ]
    one = gate_shape(value, gates[step.n % len(gates)])
    return f"{one} * {value.name}" if step.b % 2 else f"{value.name} * {one}"


@operator("gates")
def gate_per_field(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes == 2 and value.row[0] <= DENSE)
    if value is None:
        return None
    fields = value.row[0]
    weights = [f"dense[:, :{fields}]", f"dense[:, :{fields}].softmax(1)", f"(dense[:, :{fields}] > 0).double()"]
    form = [f"{value.name} * {weights[step.b % 3]}.unsqueeze(-1)"]
    form.append(f"torch.where(dense[:, :{fields}, None] > 0, {value.name}, 0.0)")
    form.append(f"{value.name}.masked_fill(dense[:, :{fields}, None] > 0, 0.0)")
    form.append(f"torch.bmm({weights[step.b % 3]}.unsqueeze(1), {value.name})")
    form.append(f"torch.einsum('bf,bfn->bn', {weights[step.b % 3]}, {value.name})")
    return form[step.n % len(form)]


@operator("gates")
def gate_by_value(draft: Draft, step: Step) -> str | None:
    """A value that is one number per row, or per field, gates another."""
    value = draft.pick(step.a)
    if value is None:
        return None
    other = draft.pick(step.b, lambda each: value.axes > 0 and each.row == (*value.row[:-1], 1))
    if other is None:
        return None
    weight = f"torch.sigmoid({other.name})" if step.n % 2 else other.name
    return f"{value.name} * {weight}"


@operator("gates")
def constant_gate(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    shape = value.row[step.b % value.axes :]
    shape = (*shape[:-1], 1) if step.n % 3 == 2 else shape
    weight = draft.parameter(*shape)
    return f"{value.name} / (2.0 + {weight}.abs())" if step.n % 2 else f"{value.name} * {weight}"


@operator("gates")
def pooled(draft: Draft, step: Step) -> str | None:
    """A masked history, summed, averaged or weighted."""
    value = draft.pick(step.a, lambda value: value.axes == 2 and value.row[0] == HISTORY)
    if value is None:
        return None
    mask, name = "(history != 0)", value.name
    forms = [
        f"({name} * {mask}[:, :, None]).sum(1)",
        f"({name} * {mask}[:, :, None]).sum(1) / {mask}.sum(1, keepdim=True)",
        f"({name} * {mask}[:, :, None].double()).sum(1, keepdim=True) / {mask}.sum(1)[:, None, None]",
        f"({name} * torch.softmax(history.double(), 1).unsqueeze(-1)).sum(1)",
        f"torch.where({mask}[:, :, None], {name}, 0.0).mean(1)",
        f"({name} - (1 - {mask}[:, :, None].double()) * 100.0).amax(1)",
        f"({name} * {mask}[:, :, None] + 0.5 * {name}).sum(1)",
    ]
    return forms[step.n % len(forms)]


@operator("gates")
def squeeze_excite(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, fields_only)
    if value is None:
        return None
    fields = value.row[0]
    squeeze, excite = draft.linear(fields, 2), draft.linear(2, fields)
    weight = f"torch.relu({excite}(torch.relu({squeeze}({value.name}.mean(-1)))))"
    return f"{value.name} * {weight}.unsqueeze(-1)"


@operator("gates")
def vector_cross(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    other = draft.pick_like(value, step.b)
    score = f"{draft.linear(value.row[-1], 1, bias=step.n % 2 == 0)}({other.name})"
    if step.n % 3 == 2 and value.axes == 1:
        score = f"torch.matmul({other.name}, {draft.parameter(value.row[-1])}).unsqueeze(1)"
    return f"{value.name} * {score} + {draft.parameter(value.row[-1])} + {other.name}"
