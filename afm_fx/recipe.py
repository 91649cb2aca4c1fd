"""How a program came about, step by step, and how an exported file says so.

A file carries two notes in its metadata: ``afm_fx.plan``, the digest of the plan that made the program low-rank (absent
for a dense one), and ``afm_fx.recipe``, JSON::

    {"version": 1,
     "made_by": "afm_fx 0.1.0",
     "exporter": "torch 2.13.0",
     "plan": "sha256:...",
     "batch_size": null,
     "batched": {"inputs": ["ids", "dense"], "outputs": ["output"]},
     "steps": [{"step": "apply plan"}, {"step": "pack", "out_of_range": "unchecked"}]}

``batch_size`` is null for a free one. ``batched`` names the inputs and outputs whose axis 0 is the batch; it is null
where that is not known. Nothing in it depends on when or where it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from afm_fx.errors import FileFormatError

PLAN_KEY = "afm_fx.plan"
RECIPE_KEY = "afm_fx.recipe"
PRODUCER = "afm_fx"
VERSION = 1

Setting: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True)
class Step:
    """One thing that was done.

    Attributes:
        name: what: "apply plan", "pack", "typed inputs", "tables", "recover", "dtype" or "Linears in int8".
        settings: how.
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
        recipe: how its program came about.
        made_by: this package and its version.
        exporter: what wrote the operators.
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
        """The note as it stands in the file, see the module."""
        batched = None
        if self.batched_inputs is not None and self.batched_outputs is not None:
            batched = {"inputs": list(self.batched_inputs), "outputs": list(self.batched_outputs)}
        return json.dumps(
            {
                "version": VERSION,
                "made_by": self.made_by,
                "exporter": self.exporter,
                "plan": self.recipe.plan,
                "batch_size": self.batch_size,
                "batched": batched,
                "steps": [{"step": each.name, **each.settings} for each in self.recipe.steps],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> FileRecipe:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: it is something else, or of another version.
        """
        try:
            content = json.loads(text)
            if content["version"] != VERSION:
                raise FileFormatError(
                    f"the recipe ('{RECIPE_KEY}') is of version {content['version']}, this release reads {VERSION}"
                )
            steps = tuple(
                Step(str(each["step"]), {key: value for key, value in each.items() if key != "step"})
                for each in content["steps"]
            )
            batched = content["batched"]
            return cls(
                Recipe(steps, content["plan"]),
                str(content["made_by"]),
                str(content["exporter"]),
                content["batch_size"],
                None if batched is None else tuple(batched["inputs"]),
                None if batched is None else tuple(batched["outputs"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"the recipe ('{RECIPE_KEY}') is damaged: {error!r}") from error

    def lines(self) -> list[str]:
        """The recipe in words, one step a line."""
        size = "any" if self.batch_size is None else str(self.batch_size)
        first = f"made by {self.made_by}, {self.exporter}; batch size {size}"
        return [first, *(str(each) for each in self.recipe.steps)]


def file_recipe(metadata: Mapping[str, str]) -> FileRecipe | None:
    """What a file's metadata say, None for a file that something else wrote.

    Raises:
        FileFormatError: the note is damaged.
    """
    text = metadata.get(RECIPE_KEY)
    return None if text is None else FileRecipe.from_json(text)
