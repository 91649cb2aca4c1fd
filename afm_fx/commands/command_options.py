"""Options that commands share, and commands made from the fields of a dataclass.

What declares a command imports nothing heavy at its top: a misspelt option, a missing file or ``--help`` is answered
before torch is there. Functions name what they call by its room, ``afm_fx.program.build_model``, which is then loaded.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from afm_fx.errors import FileFormatError, UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
Number = TypeVar("Number", int, float)

DATA, OUTPUT = "Data", "Output"
"""Panels of options that several commands have."""


def existing(what: str) -> Callable[[Any], Any]:
    """A callback that refuses paths that are not there, while the command line is read.

    Args:
        what: they are, for the error.
    """

    def check(given: Path | list[Path] | None) -> Path | list[Path] | None:
        for path in [given] if isinstance(given, Path) else given or []:
            if not path.exists():
                raise FileFormatError(f"there is no {what} '{path}'")
        return given

    return check


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The model as package.module:factory, a function that returns (model, example_inputs).",
        show_default=False,
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        help="The model's weights: .safetensors, an index of several (.safetensors.index.json), a folder of "
        "torch.distributed.checkpoint, or a state dict that torch.save wrote.",
        show_default=False,
        callback=existing("checkpoint"),
        rich_help_panel=DATA,
    ),
]
COLUMNS: Any = typer.Option(
    metavar="NAMES",
    help="Columns of the data to use, in the model's order, comma-separated.",
    show_default=False,
    rich_help_panel=DATA,
)
LABELS: Any = typer.Option(
    metavar="NAMES",
    help="Columns of labels from 0 to 1, one per output in the model's order, comma-separated.",
    show_default=False,
    rich_help_panel=DATA,
)
EvaluationOption = Annotated[
    Path | None,
    typer.Option(
        help="Rows to measure AUC and LogLoss on; needs --labels.",
        show_default=False,
        callback=existing("data file"),
        rich_help_panel=DATA,
    ),
]
BatchRowsOption = Annotated[int, typer.Option(min=1, metavar="ROWS", help="Rows a batch.", rich_help_panel=DATA)]
MaxRowsOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="ROWS", help="Calibrate on so many rows at most.", show_default="all", rich_help_panel=DATA
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Write the result here as well.", show_default=False, rich_help_panel=OUTPUT),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.", rich_help_panel=OUTPUT)]

NONE = "none"
"""How an empty tuple is given where the default is not empty."""


def names_of(text: str | None) -> list[str] | None:
    """Names, given with commas between; None where nothing was given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def numbers_of(text: str, what: str, number: type[Number]) -> list[Number]:
    """Numbers, given with commas between.

    Args:
        what: they are, in the plural, for the error.

    Raises:
        UserError: they are no such numbers.
    """
    try:
        return [number(part) for part in text.split(",")]
    except ValueError:
        kind = "whole numbers" if number is int else "numbers"
        raise UserError(f"{what} are {kind} with commas between; got '{text}'") from None


def option_name(field: str) -> str:
    """How the command line spells a field's name."""
    return f"--{field.replace('_', '-')}"


def command_of(config: type[Config], run: Callable[[Config], None]) -> Callable[..., None]:
    """A command whose arguments and options are the fields of a frozen dataclass.

    A field's type is ``Annotated`` with the ``typer.Option`` or ``typer.Argument`` that it is; a tuple of strings or
    numbers is given with commas between. The command also takes ``--config FILE``, JSON of options by field
    name as :func:`spelled` gives them, which stand where the command line says nothing.

    Args:
        run: is given an instance; its name and docstring are the command's.
    """
    hints = get_type_hints(config, include_extras=True)
    tuples = {name: item for name, hint in hints.items() if (item := _tuple_item(hint)) is not None}

    def command(*, config_file: Path | None, **options: Any) -> None:  # noqa: ARG001 - read by its callback
        given = {name: _tuple(name, options[name], item) for name, item in tuples.items()}
        run(config(**{**options, **given}))

    parameters = [_parameter(field, hints[field.name]) for field in fields(config)]
    parameters.append(_keyword("config_file", ConfigOption, None))
    command.__name__, command.__doc__ = run.__name__, run.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def spelled(config: DataclassInstance) -> dict[str, str | bool | float]:
    """The fields that differ from their defaults, as ``--config`` reads them."""
    given = ((field, getattr(config, field.name)) for field in fields(config))
    return {field.name: _spelled(value) for field, value in given if field.default is MISSING or value != field.default}


def command_line(config: DataclassInstance) -> Iterator[str]:
    """The words that give a command the fields that differ from their defaults."""
    hints = get_type_hints(type(config), include_extras=True)
    for name, value in spelled(config).items():
        if isinstance(hints[name].__metadata__[0], typer.models.ArgumentInfo):
            yield str(value)
        elif isinstance(value, bool):
            yield option_name(name if value else f"no_{name}")
        else:
            yield from (option_name(name), str(value))


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise typer.BadParameter(f"'{path}' is no JSON file: {error}") from error
        known = {parameter.name for parameter in context.command.params}
        if not isinstance(content, dict) or not content.keys() <= known:
            unknown = sorted(set(content) - known) if isinstance(content, dict) else type(content).__name__
            raise typer.BadParameter(f"'{path}' holds no options of this command: {unknown}")
        context.default_map = content
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_read_config,
        is_eager=True,
        help="Options from a file, such as the config.json of an earlier run; what the command line says goes first.",
        show_default=False,
    ),
]


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    """A field as the command's parameter; a tuple becomes text."""
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    if _tuple_item(hint) is not None:
        hint = Annotated[(str | None, *hint.__metadata__)]
        default = _spelled(default) if default else None
    return _keyword(field.name, hint, default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _tuple_item(hint: Any) -> type | None:
    """The type of a tuple's items, None for what is no tuple."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(plain)[0] if get_origin(plain) is tuple else None


def _tuple(name: str, text: str | None, item: type) -> tuple[Any, ...]:
    if text is None or text == NONE:
        return ()
    return tuple(names_of(text) or ()) if item is str else tuple(numbers_of(text, name.replace("_", " "), item))


def _spelled(value: Any) -> str | bool | float:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or NONE
    return value if isinstance(value, bool | int | float) else str(value)
