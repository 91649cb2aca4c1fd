"""The vocabulary of random models: how each operator is written for the values that there are.

An operator reads a :class:`~tests.passes.random_models.Step` and returns an expression, or None where nothing fits it.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.passes.random_models import Draft, Operator, Step, Value

OPERATORS: dict[str, Operator] = {}
THEMES: dict[str, list[str]] = {}


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
