"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afm_fx.errors import UserError

MODEL_HELP = "The model as package.module:factory, a function that returns (model, example_inputs)."

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        help="State dict for the model: .safetensors, an index of several (.safetensors.index.json), a folder that "
        "torch.distributed.checkpoint wrote, or saved with torch.save (read with weights_only=True).",
        show_default=False,
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def names_of(text: str | None) -> list[str] | None:
    """Names, given with commas between; None where nothing was given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def whole_numbers(text: str, what: str = "batch sizes") -> list[int]:
    """Whole numbers, given with commas between.

    Args:
        text: as it was given.
        what: they are, in the plural, for the error.

    Raises:
        UserError: they are no whole numbers.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{what} are whole numbers with commas between, say 1,256,4096; got '{text}'") from None
