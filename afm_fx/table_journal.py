"""What a run that writes tables has done so far, on disk, so that another process can go on from there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afm_fx.errors import UserError
from afm_fx.table_file import sync_folder

NAME = "journal.jsonl"


@dataclass
class TableProgress:
    """How far one table is.

    Attributes:
        rows: rows that are done.
        same: whether they are all as the files before have them, so that nothing is written yet.
        encoded: blocks that were encoded.
        reused: blocks whose rows were copied from the files before, or stand there.
        digests: of the blocks that are done.
        energy: what :class:`afm_fx.table_stream.KeptEnergy` makes of them, None where there is no factor.
    """

    rows: int = 0
    same: bool = True
    encoded: int = 0
    reused: int = 0
    digests: list[str] = field(default_factory=list)
    energy: dict[str, Any] | None = None


class TableJournal:
    """The journal of a folder of files that are being written.

    Every entry says that some rows are on the disk; it is written after they are.

    Args:
        folder: of the files; what it holds belongs to the journal.
        fingerprint: of the run. Where the folder was left by another run, it is emptied.

    Attributes:
        progress: by table.
        resumed: whether a run of this fingerprint had begun already.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.progress: dict[str, TableProgress] = {}
        self._path = folder / NAME
        self.resumed = self._read(fingerprint)
        try:
            if not self.resumed:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            self._file = self._path.open("a", encoding="utf-8")
            if not self.resumed:
                self._write({"fingerprint": fingerprint})
                sync_folder(folder)
        except OSError as error:
            raise UserError(f"cannot write to '{folder}': {error}") from error

    def note(self, table: str, progress: TableProgress, digests: list[str]) -> None:
        """Records how far a table is.

        Args:
            table: its name.
            progress: the numbers to record.
            digests: those of its digests that no earlier entry holds.
        """
        known = {"rows": progress.rows, "same": progress.same, "encoded": progress.encoded, "reused": progress.reused}
        self._write({"table": table, **known, "energy": progress.energy, "digests": digests})

    def close(self) -> None:
        """Closes its file."""
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, fingerprint: str) -> bool:
        """Takes over what an earlier run of this fingerprint did; says whether there was one."""
        try:
            content = self._path.read_bytes()
        except OSError:
            return False
        lines = content.splitlines(keepends=True)
        whole = 0
        begun = False
        for line in lines:
            entry: Any = None
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(entry, dict):
                break  # the entry that was being written when the run ended
            if not begun:
                if entry.get("fingerprint") != fingerprint:
                    return False
                begun = True
            else:
                self._take(entry)
            whole += len(line)
        if begun and whole < len(content):
            os.truncate(self._path, whole)
        return begun

    def _take(self, entry: dict[str, Any]) -> None:
        known = self.progress.setdefault(entry["table"], TableProgress())
        known.rows, known.same = int(entry["rows"]), bool(entry["same"])
        known.encoded, known.reused = int(entry["encoded"]), int(entry["reused"])
        known.energy = entry["energy"]
        known.digests += entry["digests"]
