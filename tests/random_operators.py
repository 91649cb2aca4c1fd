"""The vocabulary of random models: how each operator is written for the values that there are.

An operator reads a :class:`~tests.random_models.Step` and returns an expression, or None where nothing fits it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.random_models import DENSE, HISTORY, ID_FIELDS, Draft, Operator, Recipe, Step, Table, Value

OPERATORS: dict[str, Operator] = {}
THEMES: dict[str, list[str]] = {}


@torch.library.custom_op("afm_fx_tests::twist", mutates_args=())
def twist(features: Tensor) -> Tensor:
    """An operator that no table of laws knows: neighbours are mixed, each by a curve."""
    return features.roll(1, -1) * 0.5 + features.sin()


@twist.register_fake
def _(features: Tensor) -> Tensor:
    return torch.empty_like(features)


@torch.library.custom_op("afm_fx_tests::two_ways", mutates_args=())
def two_ways(features: Tensor) -> tuple[Tensor, Tensor]:
    """The same with two results."""
    return features.cos(), features.flip(-1) + 1.0


@two_ways.register_fake
def _(features: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features), torch.empty_like(features)


def operator(theme: str) -> Callable[[Operator], Operator]:
    """Puts a function into the vocabulary under its name."""

    def enter(function: Operator) -> Operator:
        name = getattr(function, "__name__", "").strip("_")
        OPERATORS[name] = function
        THEMES.setdefault(theme, []).append(name)
        return function

    return enter


def unary(theme: str, **forms: str) -> None:
    """Operators of one value, written with ``x``."""
    for name, form in forms.items():

        def write(draft: Draft, step: Step, form: str = form) -> str | None:
            value = draft.pick(step.a)
            return None if value is None else form.replace("$", value.name)

        OPERATORS[name] = write
        THEMES.setdefault(theme, []).append(name)


def fields_only(value: Value) -> bool:
    return value.axes == 2


def axis_of(value: Value, step: Step) -> int:
    """An axis after the batch, the last one first."""
    return value.axes - step.n % value.axes


# Lookups.


@operator("lookups")
def lookup(draft: Draft, step: Step) -> str:
    """One or several id columns, or the history, of one table."""
    table, column = f"self.table_{step.a % len(draft.tables)}", step.b % ID_FIELDS
    forms = [
        f"ids[:, {column}]",
        f"ids[:, {column}:{column + 1}]",
        f"ids[:, :{2 + step.b % 3}]",
        "history",
        f"ids[:, {column}] % 3",
    ]
    return f"{table}({forms[step.n % len(forms)]})"


@operator("lookups")
def functional_lookup(draft: Draft, step: Step) -> str:
    return f"F.embedding(history, self.table_{step.a % len(draft.tables)}.weight)"


# Moves.

unary(
    "moves",
    flatten="$.flatten(1)",
    clone="$.clone()",
    dropout="F.dropout($, 0.5, False)",
    first_row_axis="$.unsqueeze(1)",
    last_axis="$.unsqueeze(-1)",
    squeezed="$.squeeze(-1)",
    squeezed_row="$.squeeze(1)",
    back_and_forth="$.transpose(0, 1).contiguous().transpose(0, 1)",
    tiled="torch.cat([$, $], -1)",
)


@operator("moves")
def column(draft: Draft, step: Step) -> str | None:
    """One number per row gets its feature axis back."""
    value = draft.pick(step.a, lambda value: value.axes == 0)
    return None if value is None else f"{value.name}{['.unsqueeze(1)', '[:, None]', '.reshape(-1, 1)'][step.n % 3]}"


@operator("moves")
def reshape(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    total = value.features
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    shapes = [(one, total // one) for one in divisors]
    shapes += [(one, two, total // one // two) for one in divisors for two in divisors if total % (one * two) == 0]
    shape = shapes[(step.n * 5 + step.b) % len(shapes)]
    return f"{value.name}.reshape(-1, {', '.join(map(str, shape))})"


@operator("moves")
def cat(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    axis = axis_of(value, step)

    def joins(other: Value) -> bool:
        return other.axes == value.axes and all(
            one == two for place, (one, two) in enumerate(zip(value.row, other.row, strict=True), 1) if place != axis
        )

    pieces = [value, draft.pick(step.b, joins) or value, draft.pick(step.b + 1, joins) or value]
    if step.n % 2:
        pieces = [pieces[1], pieces[0]]
    return f"torch.cat([{', '.join(piece.name for piece in pieces)}], {axis if step.n % 3 else axis - value.axes - 1})"


@operator("moves")
def cat_all(draft: Draft, step: Step) -> str:
    """All flat values beside each other: what an MLP reads."""
    flat = [value for value in draft.values if value.axes == 1][step.n % 2 :][:5] or draft.values[:1]
    turn = step.b % len(flat)
    return f"torch.cat([{', '.join(value.name for value in flat[turn:] + flat[:turn])}], -1)"


@operator("moves")
def stack(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: 0 < value.axes < 3)
    if value is None:
        return None
    pieces = [value, draft.pick_like(value, step.b), draft.pick_like(value, step.b + 1)][: 2 + step.n % 2]
    axis = 1 + step.n % (value.axes + 1)
    return f"torch.stack([{', '.join(piece.name for piece in pieces)}], {axis})"


@operator("moves")
def sliced(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    axis = axis_of(value, step)
    size = value.row[axis - 1]
    first = step.b % size
    end = [size, first + 1, -1, size][step.n % 4]
    bounds = f"{first}:{end}" if step.n % 5 else f"{first}::2"
    return f"{value.name}[{':, ' * axis}{bounds}]"


@operator("moves")
def select(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes > 1)
    if value is None:
        return None
    axis = 1 + step.n % value.axes
    return f"{value.name}.select({axis}, {step.b % value.row[axis - 1]})"


@operator("moves")
def split(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    axis = axis_of(value, step)
    size = value.row[axis - 1]
    first = 1 + step.b % max(size - 1, 1)
    forms = [
        f"{value.name}.chunk(2, {axis})[{step.b % 2}]",
        f"{value.name}.split({first}, {axis})[-1]",
        f"{value.name}.split([{first}, {size - first}], {axis})[{step.b % 2}]",
        f"{value.name}.unbind({axis})[{step.b % size}]",
        f"torch.cat({value.name}.chunk(2, {axis})[::-1], {axis})",
        f"torch.stack({value.name}.unbind({axis})[::-1], {axis})",
    ]
    return forms[step.n % len(forms)]


@operator("moves")
def permute(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes > 1)
    if value is None:
        return None
    orders = list(itertools.permutations(range(1, value.axes + 1)))[1:]
    return f"{value.name}.permute(0, {', '.join(map(str, orders[step.n % len(orders)]))})"


@operator("moves")
def expand(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: 0 < value.axes < 3)
    if value is None:
        return None
    axis, times = 1 + step.n % value.axes, 2 + step.b % 2
    sizes = ["-1"] * (value.axes + 2)
    sizes[axis] = str(times)
    return f"{value.name}.unsqueeze({axis}).expand({', '.join(sizes)})"


@operator("moves")
def repeat(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    times = ["1"] * (value.axes + 1)
    times[axis_of(value, step)] = str(2 + step.b % 2)
    return f"{value.name}.repeat({', '.join(times)})"


# Linears and sums.


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


# Gates.

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


# Interactions.


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


# Curves and norms, and what no table knows.

unary(
    "curves",
    relu="torch.relu($)",
    sigmoid="torch.sigmoid($)",
    tanh="torch.tanh($)",
    gelu="F.gelu($)",
    leaky_relu="F.leaky_relu($, 0.1)",
    softmax="$.softmax(-1)",
    softmax_over_fields="$.softmax(1)",
    maximum="$.amax(1)",
    absolute="$.abs()",
    clamped="$.clamp(-1.0, 1.0)",
    normalized="F.normalize($, dim=-1, eps=0.1)",
    unknown="torch.ops.afm_fx_tests.twist($)",
    unknown_pair="torch.ops.afm_fx_tests.two_ways($)[1]",
    unknown_both="sum(torch.ops.afm_fx_tests.two_ways($))",
    cumulated="$.cumsum(1)",
    flipped="$.flip(-1)",
    rounded_trip="$.float().double() * 0.0 + $",
)


@operator("curves")
def batch_norm(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: 0 < value.axes < 3)
    if value is None:
        return None
    layer = draft.part(nn.BatchNorm1d(value.row[0], affine=step.n % 3 != 2), f"{value.row[0]}")
    return f"{layer}({value.name})"


@operator("curves")
def layer_norm(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a, lambda value: value.axes > 0 and value.row[-1] > 1)
    if value is None:
        return None
    axes = value.row[step.b % value.axes :]
    layer = draft.part(nn.LayerNorm(axes, eps=0.1, elementwise_affine=step.n % 2 == 0), f"{list(axes)}")
    return f"{layer}({value.name})"


@operator("curves")
def prelu(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    return None if value is None else f"{draft.part(nn.PReLU(), '')}({value.name})"


@operator("curves")
def perceptron(draft: Draft, step: Step) -> str | None:
    value = draft.pick(step.a)
    if value is None:
        return None
    hidden, width = 2 + step.b % 4, 1 + step.n % 4
    first, second = draft.linear(value.row[-1], hidden), draft.linear(hidden, width)
    return f"{second}(torch.relu({first}({value.name})))"


NOT_IN_ONNX = frozenset({"unknown", "unknown_pair", "unknown_both"})
"""Operators of our own, which no exporter knows."""


def recipes(
    theme: str | None = None, *, without: frozenset[str] = frozenset(), steps: int = 12
) -> st.SearchStrategy[Recipe]:
    """Random recipes.

    Args:
        theme: the part of the vocabulary that every other step is taken from; None for no preference.
        without: operators to leave out.
        steps: the most steps after the first lookups.
    """
    names = [name for name in OPERATORS if name not in without]
    own = [name for name in THEMES[theme] if name not in without] if theme else []
    number = st.integers(0, 11)
    looks = st.builds(Step, st.just("lookup"), st.integers(0, 3), st.integers(0, 5), st.integers(0, 4))
    others = st.builds(Step, st.sampled_from(names), number, number, number)
    preferred = st.builds(Step, st.sampled_from(own or names), number, number, number)
    return st.builds(
        lambda tables, first, rest, heads: Recipe(tuple(tables), (*first, *rest), heads),
        st.lists(st.builds(Table, st.sampled_from([4, 2, 6, 3, 1]), st.booleans()), min_size=1, max_size=3),
        st.lists(looks, min_size=1, max_size=4),
        st.lists(others | preferred | preferred, min_size=2, max_size=steps),
        st.integers(0, 3),
    )
