"""How a program came about, step by step, and how an exported file says so.

A file carries two notes in its metadata: ``afm_fx.plan``, the digest of the plan that made the program low-rank (absent
for a dense one), and ``afm_fx.recipe``, a :class:`FileRecipe` as JSON. Nothing in it depends on when or where it was
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from afm_fx.io import from_json, to_json

PLAN_KEY = "afm_fx.plan"
RECIPE_KEY = "afm_fx.recipe"
PRODUCER = "afm_fx"
VERSION = 2

Setting: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True)
class Step:
    """One thing that was done.

    Attributes:
        name: what: "apply plan", "pack", "typed inputs", "tables", "recover" or "dtype".
    """

    name: str
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __str__(self) -> str:
        """The step in words."""
        shown = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.name} ({shown})" if shown else self.name


@dataclass(frozen=True)
class Recipe:
    """What was done to a captured model.

    Attributes:
        steps: in the order in which it was done.
        plan: digest of the plan that was applied last, None where none was.
    """

    steps: tuple[Step, ...] = ()
    plan: str | None = None

    def then(self, name: str, **settings: Setting) -> Recipe:
        """The recipe with one more step."""
        return replace(self, steps=(*self.steps, Step(name, settings)))

    def with_plan(self, digest: str) -> Recipe:
        """The recipe after a plan was applied."""
        return replace(self.then("apply plan"), plan=digest)


@dataclass(frozen=True)
class FileRecipe:
    """What an exported file says of itself.

    Attributes:
        batch_size: the one batch size that it takes, None for any.
        batched_inputs: inputs whose axis 0 is the batch, None where that is not known.
        batched_outputs: outputs whose axis 0 is the batch, None where that is not known.
    """

    recipe: Recipe
    made_by: str
    exporter: str
    batch_size: int | None = None
    batched_inputs: tuple[str, ...] | None = None
    batched_outputs: tuple[str, ...] | None = None

    def to_json(self) -> str:
        """The note as it stands in the file."""
        return to_json(self, VERSION)

    def lines(self) -> list[str]:
        """The recipe in words, one step a line."""
        size = "any" if self.batch_size is None else str(self.batch_size)
        first = f"made by {self.made_by}, {self.exporter}; batch size {size}"
        return [first, *(str(step) for step in self.recipe.steps)]


def file_recipe(metadata: Mapping[str, str]) -> FileRecipe | None:
    """What a file's metadata say, None for a file that something else wrote.

    Raises:
        FileFormatError: the note is damaged.
    """
    text = metadata.get(RECIPE_KEY)
    return None if text is None else from_json(text, FileRecipe, VERSION, f"the recipe ('{RECIPE_KEY}')")
