"""Outputs are complete or absent: they are written beside their place, and take it when they are on the disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from afm_fx.errors import OutputExistsError, UserError


def refuse_existing(directory: Path, names: Sequence[str], *, force: bool) -> None:
    """Checks, before any work, that files may be written to a directory.

    Raises:
        OutputExistsError: one of them exists and ``force`` is not set.
        UserError: the directory is a file, or cannot be written to.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"'{directory}' is a file; name a directory to write to")
    existing = [name for name in names if (directory / name).exists()]
    if existing and not force:
        raise OutputExistsError(f"'{directory / existing[0]}' exists already; choose another --out or add --force")
    nearest = next(each for each in (directory, *directory.absolute().parents) if each.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"'{nearest}' cannot be written to; choose another --out")


def refuse_existing_file(path: Path, *, force: bool) -> None:
    """Refuses an output file that exists.

    Raises:
        OutputExistsError: the path is a directory, or exists and ``force`` is not set.
    """
    if path.is_dir():
        raise OutputExistsError(f"'{path}' is a directory; give the path of a file")
    if path.exists() and not force:
        raise OutputExistsError(f"'{path}' exists already; choose another path or overwrite it with force (--force)")


@contextlib.contextmanager
def staging_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory beside a target, on the same disk, and removes it at the end.

    Where the body raises, the parents made for it vanish as well.

    Raises:
        UserError: nothing can be written there.
    """
    parent = target.absolute().parent
    made = [each for each in (parent, *parent.parents) if not each.exists()]
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            staging = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=parent)
        except OSError as error:
            raise UserError(f"cannot write to '{parent}': {error}") from error
        with staging as directory:
            yield Path(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
        raise


@contextlib.contextmanager
def staged_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Yields where to write a file, which takes its place at the end; where the body raises, nothing is replaced.

    Raises:
        OutputExistsError: the path is a directory, or exists and ``force`` is not set.
        UserError: nothing can be written there.
    """
    refuse_existing_file(path, force=force)
    with staging_directory(path) as staging:
        yield staging / path.name
        move_into_place(staging / path.name, path)


def move_into_place(staged: Path, target: Path) -> None:
    """Gives a complete file its name, once its content is on the disk; returns once the name is, too.

    Without the first, a machine that stops could leave the new name with nothing behind it; without the second, what is
    written later could be there and this file not.
    """
    with staged.open("r+b") as file:
        os.fsync(file.fileno())
    staged.replace(target)
    if os.name == "posix":  # elsewhere a directory cannot be opened
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Writes a text file; see :func:`staged_file`."""
    with staged_file(path, force=force) as staged:
        staged.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def staged_outputs(directory: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yields an empty directory; what is in it at the end moves to ``directory``, replacing the files called ``names``.

    Where the body raises, nothing is left behind and nothing is replaced. Those files are deleted before the first new
    one has its name, so that a process that ends in between leaves some missing, never old ones beside new ones.
    """
    with staging_directory(directory / "outputs") as staging:  # in it: it may be the top of a disk
        yield staging
        for name in names:
            (directory / name).unlink(missing_ok=True)
        for file in staging.iterdir():
            file.replace(directory / file.name)
