"""How commands tell errors and warnings: one line each on standard error, and an exit code by their kind."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console

from afm_fx.errors import AfmFxError, UserError

EXIT_FAILURE, EXIT_USER_ERROR = 1, 2


@contextlib.contextmanager
def reported_errors(debug: bool) -> Iterator[None]:
    """Tells errors and warnings in one line each on standard error, and exits with the code of their kind."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except UserError as error:
        if debug:
            raise
        _tell("error", str(error))
        raise typer.Exit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        _tell("error", "interrupted")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort, typer.TyperException):  # typer tells what is wrong with options
        raise
    except Exception as error:  # whatever else failed is told in one line as well
        if debug:
            raise
        _tell("error", f"{_kind(error)}{error} (afm-fx --debug shows where)")
        raise typer.Exit(EXIT_FAILURE) from None


def _kind(error: Exception) -> str:
    return "" if isinstance(error, AfmFxError) else f"{type(error).__name__}: "


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):  # for developers
        _tell("warning", str(message))


def _tell(label: str, text: str) -> None:
    style = {"error": "bold red", "warning": "bold yellow"}[label]
    console = Console(file=sys.stderr, soft_wrap=True, highlight=False)
    console.print(f"[{style}]{label}:[/]", end=" ")
    console.print(" ".join(text.split()), markup=False)
