"""Linears, constant matrices and sums."""

from __future__ import annotations

from collections.abc import Callable

from tests.passes.random_models import Draft, Step
from tests.passes.random_operators.registry import fields_only, operator


@operator("sums")
def linear(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    known = draft.known_linear(value.row[-1], step.b) if step.n % 3 == 2 else None
    layer = known or draft.linear(value.row[-1], 1 + step.b % 6, bias=step.n % 2 == 0)
    return f"{layer}({value.name})"


@operator("sums")
def linear_over_fields(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, fields_only)
    if value is None:
        return None
    layer = draft.linear(value.row[0], 1 + step.b % 4)
    return f"{layer}({value.name}.transpose(1, 2)).transpose(1, 2)"


@operator("sums")
def linear_batch_second(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, fields_only)
    if value is None:
        return None
    return f"{draft.linear(value.row[-1], 1 + step.b % 4)}({value.name}.transpose(0, 1)).transpose(0, 1)"


@operator("sums")
def matrix_product(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: 0 < value.axes < 3)
    if value is None:
        return None
    width, outputs = value.row[-1], 1 + step.b % 5
    forms: list[Callable[[], str]] = [
        lambda: f"{value.name} @ {draft.parameter(width, outputs)}",
        lambda: f"torch.tensordot({value.name}, {draft.parameter(width, outputs)}, dims=([-1], [0]))",
        lambda: f"torch.einsum('...n,nk->...k', {value.name}, {draft.parameter(width, outputs)})",
        lambda: f"torch.addmm({draft.parameter(outputs)}, {value.name}, {draft.parameter(width, outputs)})",
        lambda: f"{draft.parameter(outputs, value.row[0])} @ {value.name}",
        lambda: f"{value.name} @ {draft.parameter(width)}",
    ]
    return forms[step.n % len(forms)]()


@operator("sums")
def weight_per_field(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, fields_only)
    if value is None:
        return None
    fields, width = value.row
    weight = draft.parameter(fields, width, 1 + step.b % 4)
    if step.n % 2:
        return f"torch.einsum('bfn,fnk->bfk', {value.name}, {weight})"
    return f"torch.bmm({value.name}.transpose(0, 1), {weight}).transpose(0, 1)"


@operator("sums")
def reduce(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes > 1 or (value.axes == 1 and step.b % 2 == 0))
    if value is None:
        return None
    axes = [1 + step.n % value.axes]
    if step.b % 5 == 4 and value.axes > 2:
        axes = [1, value.axes]
    keep = step.b % 2 == 0
    return f"{value.name}.{'mean' if step.n % 3 == 2 else 'sum'}({axes}, keepdim={keep})"


@operator("sums")
def add(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    other = draft.pick_like(value, step.b)
    forms = ["{} + {}", "{} - {}", "torch.add({}, {}, alpha=0.3)", "{} + {} + {}", "torch.sub({}, {}, alpha=2)"]
    return forms[step.n % len(forms)].format(value.name, other.name, value.name)


@operator("sums")
def add_broadcast(draft: Draft, step: Step) -> str | None:
    """A row added to every field."""
    value = draft.pick(step.a, fields_only)
    if value is None:
        return None
    other = draft.pick(step.b, lambda each: each.row in (value.row[1:], (1, value.row[1]), (value.row[0], 1)))
    if other is None:
        return None
    row = f"{other.name}.unsqueeze(1)" if other.axes == 1 else other.name
    return f"{value.name} - {row}" if step.n % 2 else f"{row} + {value.name}"


@operator("sums")
def add_constant(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    if step.n % 4 == 0:
        return f"{value.name} + 0.25"
    if step.n % 4 == 1:
        return f"1.0 - {value.name}"
    shape = value.row[step.b % value.axes :]
    return (
        f"{value.name} + {draft.parameter(*shape)}" if step.n % 4 == 2 else f"{draft.parameter(*shape)} - {value.name}"
    )


@operator("sums")
def residual(draft: Draft, step: Step) -> str | None:
    """``x + f(x)``."""
    value = draft.pick(step.a)
    if value is None:
        return None
    layer = draft.linear(value.row[-1], value.row[-1], bias=step.b % 2 == 0)
    inner = f"torch.relu({layer}({value.name}))" if step.n % 2 else f"{layer}({value.name})"
    return f"{value.name} + {inner}"
