"""Lookups, and operators that move features about."""

from __future__ import annotations

import itertools

from tests.passes.random_models import ID_FIELDS, Draft, Step, Value
from tests.passes.random_operators.registry import axis_of, operator, unary


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
    shapes: list[tuple[int, ...]] = [(one, total // one) for one in divisors]
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
