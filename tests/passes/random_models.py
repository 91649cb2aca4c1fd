"""Random CTR models: a drawn recipe becomes the source of an ``nn.Module``, readable when a test fails on it.

Every recipe is valid, so that hypothesis can shrink it freely: a step names an operator and three numbers that are read
modulo what there is to choose from, and a step that fits nothing is left out. Values are tried out as they are written,
so that shapes need no arithmetic here and nothing grows beyond what float64 resolves.
"""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entry import randomize

DRAFT_ROWS = 13
"""Rows while a model is drafted; no other axis has this length, so a lost batch axis is seen."""
ID_FIELDS, HISTORY, DENSE, ROWS = 6, 3, 4, 7
MOST_FEATURES = 72
LARGEST = 1e3
INPUTS = ("ids", "history", "dense")


@dataclass(frozen=True)
class Table:
    """An embedding table of ``ROWS`` rows."""

    width: int
    padded: bool = False


@dataclass(frozen=True)
class Step:
    """One operator and the numbers that it reads: ``a`` and ``b`` pick values, counted from the last one."""

    op: str
    a: int = 0
    b: int = 0
    n: int = 0


@dataclass(frozen=True)
class Recipe:
    """All that there is to a random model."""

    tables: tuple[Table, ...]
    steps: tuple[Step, ...]
    heads: int = 0


@dataclass(frozen=True)
class Value:
    """A variable of ``forward`` with the tensor that the draft computed for it."""

    name: str
    tensor: Tensor

    @property
    def row(self) -> tuple[int, ...]:
        """The axes after the batch."""
        return tuple(self.tensor.shape[1:])

    @property
    def axes(self) -> int:
        """Number of axes after the batch."""
        return self.tensor.dim() - 1

    @property
    def features(self) -> int:
        """Number of features of a row."""
        return self.tensor[0].numel()


Operator = Callable[["Draft", Step], str | None]
"""Reads a step and writes an expression, or None where it fits nothing."""


@dataclass
class Draft:
    """A model while it is written."""

    tables: tuple[Table, ...]
    module: nn.Module = field(default_factory=nn.Module)
    made: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    ops: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, table in enumerate(self.tables):
            padding = 0 if table.padded else None
            more = "" if padding is None else ", padding_idx=0"
            self.add(f"table_{number}", nn.Embedding(ROWS, table.width, padding), f"{ROWS}, {table.width}{more}")
        self.scope: dict[str, Any] = {"self": self.module, "torch": torch, "F": nn.functional}
        self.scope |= zip(INPUTS, random_inputs(DRAFT_ROWS), strict=True)
        self.values.append(Value("dense", self.scope["dense"]))

    def add(self, name: str, part: nn.Module | nn.Parameter, arguments: str) -> str:
        """Adds a module or parameter; returns the expression that names it."""
        setattr(self.module, name, part)
        randomize(part if isinstance(part, nn.Module) else _holding(part), _generator(name))
        self.module.double().eval()
        self.made.append(f"self.{name} = {type(part).__name__}({arguments})")
        return f"self.{name}"

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> str:
        """A new Linear."""
        name = f"linear_{len(self.made)}"
        return self.add(name, nn.Linear(inputs, outputs, bias), f"{inputs}, {outputs}, bias={bias}")

    def known_linear(self, inputs: int, which: int) -> str | None:
        """A Linear that is there already."""
        fitting = [
            name
            for name, part in self.module.named_children()
            if isinstance(part, nn.Linear) and part.in_features == inputs
        ]
        return f"self.{fitting[which % len(fitting)]}" if fitting else None

    def parameter(self, *shape: int) -> str:
        """A new parameter."""
        name = f"weight_{len(self.made)}"
        return self.add(name, nn.Parameter(torch.zeros(shape)), f"{list(shape)}")

    def part(self, part: nn.Module, arguments: str) -> str:
        """Any other module."""
        return self.add(f"{type(part).__name__.lower()}_{len(self.made)}", part, arguments)

    def pick(self, place: int, fits: Callable[[Value], bool] = lambda value: value.axes > 0) -> Value | None:
        """The value at a place counted from the last one, among those that fit (those with a feature axis)."""
        fitting = [value for value in reversed(self.values) if fits(value)]
        return fitting[place % len(fitting)] if fitting else None

    def pick_like(self, value: Value, place: int) -> Value:
        """A value of the same shape, itself if there is no other."""
        other = self.pick(place, lambda each: each.row == value.row and each is not value)
        return other or value

    def take(self, step: Step, operator: Operator) -> bool:
        """Tries a step; whether it gave a value."""
        made, children = len(self.made), set(dict(self.module.named_children()))
        parameters = set(self.module._parameters)
        expression = operator(self, step)
        tensor = None if expression is None else self._try(expression)
        if expression is None or tensor is None:
            del self.made[made:]
            for name in set(dict(self.module.named_children())) - children:
                delattr(self.module, name)
            for name in set(self.module._parameters) - parameters:
                delattr(self.module, name)
            return False
        name = f"v{len(self.lines)}"
        self.used |= {value.name for value in self.values if _mentions(expression, value.name)}
        self.values.append(Value(name, tensor))
        self.scope[name] = tensor
        self.lines.append(f"{name} = {expression}")
        self.ops.append(step.op)
        return True

    @torch.no_grad()
    def _try(self, expression: str) -> Tensor | None:
        """The expression's tensor, None where it fails, has lost the batch, or is too large."""
        try:
            tensor = eval(expression, self.scope)  # noqa: S307 - the expression is ours
        except (RuntimeError, IndexError, ValueError):
            return None
        whole = isinstance(tensor, Tensor) and tensor.dim() in (1, 2, 3, 4) and tensor.shape[0] == DRAFT_ROWS
        if not whole or tensor.dtype != torch.float64 or not 1 <= tensor[0].numel() <= MOST_FEATURES:
            return None
        return tensor if bool(torch.isfinite(tensor).all()) and float(tensor.abs().max()) < LARGEST else None


class RandomModel(nn.Module):
    """A model with its source."""

    def __init__(self, draft: Draft, body: Sequence[str]) -> None:
        super().__init__()
        for name, part in draft.module.named_children():
            self.add_module(name, part)
        for name, parameter in draft.module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.ops = tuple(draft.ops)
        lines = [f"def forward(self, {', '.join(INPUTS)}):", *(f"    {line}" for line in body)]
        self.source = "\n".join([*(f"# {line}" for line in draft.made), *lines])
        scope: dict[str, Any] = {"torch": torch, "F": nn.functional}
        exec(compile(self.source, "random_model.py", "exec"), scope)  # noqa: S102 - the source is ours
        self._forward = scope["forward"]

    def forward(self, ids: Tensor, history: Tensor, dense: Tensor) -> Any:
        return self._forward(self, ids, history, dense)


def build(recipe: Recipe, operators: dict[str, Operator]) -> RandomModel:
    """The model of a recipe, in float64 and eval mode."""
    draft = Draft(recipe.tables)
    for step in recipe.steps:
        draft.take(step, operators[step.op])
    return RandomModel(draft, [*draft.lines, *_outputs(draft, recipe.heads)]).double().eval()


def _outputs(draft: Draft, form: int) -> list[str]:
    """Everything that nothing reads is returned, or goes into one or two heads."""
    ends = [value for value in draft.values if value.name not in draft.used] or draft.values[-1:]
    if form % 4 == 1:
        return [f"return ({', '.join(value.name for value in ends)},)"]
    width = sum(value.features for value in ends)
    flat = ", ".join(f"{value.name}.reshape(-1, {value.features})" for value in ends)
    lines = [f"features = torch.cat([{flat}], 1)"]
    first, last = draft.linear(width, 8), draft.linear(8, 2)
    logit = f"{last}(torch.relu({first}(features)))"
    if form % 4 == 2:
        return [*lines, f"return {logit}, {ends[-1].name}"]
    if form % 4 == 3:
        other = draft.linear(width, 1)
        return [*lines, f'return {{"click": torch.sigmoid({logit}), "buy": {other}(features)}}']
    return [*lines, f"return {logit}"]


def random_inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [rows, ID_FIELDS], histories [rows, HISTORY] padded with 0, dense [rows, DENSE] in float64."""
    generator = torch.Generator().manual_seed(100 * seed + rows)
    length = torch.randint(1, HISTORY + 1, (rows, 1), generator=generator)
    history = torch.randint(1, ROWS, (rows, HISTORY), generator=generator) * (torch.arange(HISTORY) < length)
    dense = torch.randn(rows, DENSE, generator=generator, dtype=torch.float64)
    return torch.randint(0, ROWS, (rows, ID_FIELDS), generator=generator), history, dense


def describe(recipe: Recipe, model: RandomModel) -> str:
    """Recipe and source, to be printed where a test fails."""
    steps = ", ".join(f"Step({step.op!r}, {step.a}, {step.b}, {step.n})" for step in recipe.steps)
    tables = ", ".join(map(repr, recipe.tables))
    text = f"Recipe(({tables},), ({steps},), {recipe.heads})"
    return f"{text}\n{textwrap.indent(model.source, '  ')}"


def _mentions(expression: str, name: str) -> bool:
    """Whether an expression reads a variable."""
    return name in compile(expression, "", "eval").co_names


def _holding(parameter: nn.Parameter) -> nn.Module:
    holder = nn.Module()
    holder.register_parameter("parameter", parameter)
    return holder


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))
