"""A folder of safetensors files that changes from one complete state to the next.

Every table has a file of its own, all else is in one more, and ``model.safetensors.index.json`` names them: whoever
reads the folder starts there. New files have new names and are there, on the disk, before the index is replaced in one
step. The files of the state before stay until the next change, for readers who have just read the old index. Beside the
index lies a manifest: which rows of which checkpoint every table was made of, and by what.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from afm_fx.checkpoints import INDEX_SUFFIX, Checkpoint, StoredTensor, beside, open_checkpoint
from afm_fx.errors import FileFormatError, UserError
from afm_fx.table_file import sync_folder, write_durably
from afm_fx.tensor_files import complete

INDEX = f"model{INDEX_SUFFIX}"
PARTIAL = ".partial"
LOCK = ".afm_fx.lock"
KIND = "tables"
VERSION = 1
LONGEST_NAME = 100

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class TableEntry:
    """What a manifest says of one table.

    Attributes:
        file: that holds it.
        sources: the checkpoint's tables that it is made of.
        rows: of the table.
        width: its columns.
        recipe: the digest of what was done to the rows.
        block_rows: rows that each digest is of.
        digests: of the source rows' bytes, a block each; empty where none were taken.
        kept: share of the energy that the code keeps (:class:`afm_fx.table_stream.KeptEnergy`), None without a code.
        kept_first: the same when the plan's factor was first applied in this folder.
    """

    file: str
    sources: tuple[str, ...]
    rows: int
    width: int
    recipe: str
    block_rows: int
    digests: tuple[str, ...]
    kept: float | None
    kept_first: float | None


@dataclass(frozen=True)
class Manifest:
    """What a folder holds.

    Attributes:
        name: of its own file.
        plan: the plan's digest.
        tables: by name of the parameter.
        files: all files of this state, the manifest's own included.
        superseded: files of the state before that are not in this one.
    """

    name: str
    plan: str
    tables: Mapping[str, TableEntry]
    files: tuple[str, ...]
    superseded: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The manifest as a file."""
        return (json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}, indent=1) + "\n").encode()


def is_table_folder(folder: Path) -> bool:
    """Whether a folder holds a complete state."""
    return (folder / INDEX).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder's state.

    Raises:
        FileFormatError: the folder holds no state, or a damaged one.
    """
    with complete(folder / INDEX, "index"):
        name = json.loads((folder / INDEX).read_text(encoding="utf-8"))["metadata"].get("manifest")
    if not isinstance(name, str) or not _PLAIN.fullmatch(name) or not (folder / name).is_file():
        raise FileFormatError(f"'{folder / INDEX}' names no manifest beside it: this package did not write that folder")
    path = folder / name
    with complete(path, KIND):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] != KIND or found["version"] != VERSION:
            raise FileFormatError(f"'{path}' is of kind {found['kind']}, version {found['version']}; this is another")
        tables = {
            key: TableEntry(**{**each, "sources": tuple(each["sources"]), "digests": tuple(each["digests"])})
            for key, each in found["tables"].items()
        }
        files, superseded = tuple(found["files"]), tuple(found["superseded"])
        # These names are deleted one day: they may be nothing but names of files in the folder.
        if not all(_PLAIN.fullmatch(each) for each in (*files, *superseded, *(each.file for each in tables.values()))):
            raise FileFormatError(f"'{path}' is damaged: it names files elsewhere")
        return Manifest(name, str(found["plan"]), tables, files, superseded)


def stored_table(folder: Path, name: str, entry: TableEntry) -> StoredTensor | None:
    """A table's rows, None where its file is not as the manifest says."""
    with suppress(FileFormatError):
        found = open_checkpoint(beside(folder / INDEX, entry.file)).tensors.get(name)
        if found is not None and found.shape == (entry.rows, entry.width):
            return found
    return None


def file_name(name: str, position: int, token: str) -> str:
    """A name for the file of a tensor that no other has."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name).strip(".-")[:LONGEST_NAME]
    return f"t{position}.{plain}-{token}.safetensors"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder.

    Raises:
        UserError: another one does, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / LOCK), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process is writing to '{folder}'") from error
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error}") from error
    try:
        yield
    finally:
        lock.release()


def commit(folder: Path, staged: Path, manifest: Manifest, places: Mapping[str, str]) -> None:
    """Makes what was staged the folder's state.

    Args:
        folder: whose state changes.
        staged: the new files, complete and on the disk; they move.
        manifest: of the new state.
        places: the file of every tensor.
    """
    try:
        for name in manifest.files:
            if (staged / name).exists():
                (staged / name).replace(folder / name)
        write_durably(folder / manifest.name, manifest.to_bytes())
        sync_folder(folder)
        files = [folder / name for name in set(places.values())]
        total = sum(tensor.bytes for file in files for tensor in open_checkpoint(file).tensors.values())
        metadata = {"total_size": total, "manifest": manifest.name}
        index = {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
        write_durably(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error}") from error


def open_tables(folder: Path) -> Checkpoint:
    """The tensors of a folder's state."""
    return open_checkpoint(folder / INDEX)
