"""How the benchmarks' commands end: 2 where the call or the data are wrong, 1 where the work failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from afm_fx.errors import AfmFxError, UserError


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
