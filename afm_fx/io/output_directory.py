"""Outputs are complete or absent: they are written beside their place, and take it when they are on the disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
    _sync(target.parent)


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Writes a text file; see :func:`staged_file`."""
    with staged_file(path, force=force) as staged:
        staged.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def staged_outputs(directory: Path, names: Sequence[str], *, last: str | None = None) -> Iterator[Path]:
    """Yields an empty directory; what is in it at the end moves to ``directory``, replacing the files called ``names``.

    Where the body raises, nothing is left behind and nothing is replaced. A directory that holds nothing else is made
    whole beside the old one and takes its place by one rename: a process that ends at any step leaves the old or the
    new one. Where other files are in it, or the system cannot exchange two directories, files move one by one, after
    those that they replace are deleted: some may be missing then, and none are old ones beside new ones.

    Args:
        last: the file of ``names`` that refers to the others, where these have names of their own content: they are
            moved before it and deleted after it, and the set is old or new at any step there too.
    """
    beside = _can_be_exchanged(directory, names)
    with staging_directory(directory if beside else directory / "outputs") as staging:
        made = staging / "outputs"
        made.mkdir()
        yield made
        if not (beside and _exchanged(made, directory, names)):
            _move_each(made, directory, names, last)


def _move_each(made: Path, directory: Path, names: Sequence[str], last: str | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    new = sorted((file.name for file in made.iterdir()), key=lambda name: name == last)
    if last is None:
        for name in names:
            (directory / name).unlink(missing_ok=True)
    for name in new:
        move_into_place(made / name, directory / name)
    for name in names:
        if name not in new:
            (directory / name).unlink(missing_ok=True)


def _can_be_exchanged(directory: Path, names: Sequence[str]) -> bool:
    """Whether a directory may be replaced by another: it is not there, or is nobody's place and holds only outputs."""
    if directory.is_symlink() or not directory.exists():
        return not directory.is_symlink()
    if os.path.ismount(directory) or not os.access(directory.absolute().parent, os.W_OK):
        return False
    working = Path.cwd().resolve()  # whose paths would lead into what is deleted
    return directory.resolve() not in (working, *working.parents) and {each.name for each in directory.iterdir()} <= {
        *names
    }


def _exchanged(made: Path, directory: Path, names: Sequence[str]) -> bool:
    """Puts a new directory in the place of another by one rename; False where the system cannot, nothing is changed."""
    for file in made.iterdir():
        _sync(file)
    if not directory.exists():
        made.rename(directory)
    else:
        made.chmod(directory.stat().st_mode)
        exchange = _renameat2()
        if exchange is None or exchange(made, directory) != 0:
            return False
        for other in made.iterdir():  # what another program has written there in between
            if other.name not in names:
                other.replace(directory / other.name)
    _sync(directory.absolute().parent)
    return True


def _renameat2() -> Callable[[Path, Path], int] | None:
    """Exchanges two paths in one step, 0 where that was done; None where the system has no such call."""
    if sys.platform != "linux":
        return None
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call is None:
        return None
    return lambda one, other: int(call(here, os.fsencode(one), here, os.fsencode(other), exchange))


def _sync(path: Path) -> None:
    """Returns once a file's content, or a directory's names, are on the disk."""
    if os.name != "posix":
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
