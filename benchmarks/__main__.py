"""The command ``python -m benchmarks NAME``.

A benchmark is the function of the same name in the module of the same name. It is imported when it runs; what the list
of benchmarks says of it is the first line of its docstring, read from its source.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from afm_fx.errors import AfmFxError, UserError

FOLDERS = {
    "quality": ("quality", "recovery", "cold-ids"),
    "serving": ("latency", "packing", "floor", "serving-load"),
    "cost": ("cost", "analysis-time", "packing-memory", "large-file", "scale", "scale-apply"),
}
"""The benchmarks, by the folder that they lie in."""

PANELS = {
    "quality": "How good a compressed model is",
    "serving": "How fast it answers",
    "cost": "What making it takes, in time and memory",
}
"""What a folder's benchmarks answer."""


class Benchmarks(TyperGroup):
    """The benchmarks as commands."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the group's signature
        """The names, as ``FOLDERS`` orders them."""
        return [name for names in FOLDERS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the group's signature
        """What the list shows of a benchmark, without importing it; None where there is none of that name."""
        folder = next((folder for folder, names in FOLDERS.items() if cmd_name in names), None)
        if folder is None:
            return None
        return TyperCommand(cmd_name, help=first_line(folder, cmd_name), rich_help_panel=PANELS[folder])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The benchmark itself, and the arguments that are left for it."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, imported(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Runs a benchmark."""
        with exit_codes():
            return super().invoke(ctx)


def first_line(folder: str, name: str) -> str:
    """Of the docstring of a benchmark's function."""
    function = name.replace("-", "_")
    source = Path(__file__).resolve().parent / folder / f"{function}.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (found,) = (each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == function)
    return (ast.get_docstring(found) or "").partition("\n")[0]


def imported(name: str) -> Any:
    """The command of a benchmark, with its options."""
    folder, function = next(key for key, names in FOLDERS.items() if name in names), name.replace("-", "_")
    alone = typer.Typer(add_completion=False)
    alone.command(name)(getattr(importlib.import_module(f"benchmarks.{folder}.{function}"), function))
    return typer.main.get_command(alone)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Tells an error in one line and exits with its code; what nobody expected keeps its traceback."""
    try:
        yield
    except typer.Exit:
        raise
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except (AfmFxError, RuntimeError) as error:
        typer.echo(f"failed: {error}", err=True)
        raise typer.Exit(1) from error


app = typer.Typer(
    cls=Benchmarks,
    help="Benchmarks of afm_fx. Each prints what it measured, and writes it as a page and as data.",
    epilog="Exit codes: 0 done, 1 the work failed or what was to be shown does not hold, 2 the call or the data are "
    "wrong.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None: ...


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
