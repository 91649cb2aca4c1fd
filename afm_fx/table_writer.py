"""Writes one table of a low-rank program, block by block, as far as it is not there already.

A block is compared by the digest of the checkpoint's bytes. As long as all of them are as they were when the folder's
table was made, nothing is written: the table is kept. From the first one that differs on, a new file is written, and
blocks that did not change are copied to it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from afm_fx.checkpoints import StoredTensor
from afm_fx.errors import UserError
from afm_fx.streamed_plan import TableSource
from afm_fx.table_file import TableFile
from afm_fx.table_folder import PARTIAL, TableEntry, stored_table
from afm_fx.table_journal import TableJournal, TableProgress
from afm_fx.table_stream import Block, KeptEnergy, read_blocks

SYNC_BYTES = 1 << 28
"""So many bytes are read or written between two entries of the journal: what an interruption may cost."""


@dataclass(frozen=True)
class TableReport:
    """What became of one table.

    Attributes:
        name: of its parameter in the low-rank program.
        sources: the checkpoint's tables that it is made of.
        rows: of the table.
        source_width: columns of the tables that were read.
        width: columns of the table that was made.
        changed: whether it differs from what the folder held.
        blocks: of rows.
        encoded: blocks that were encoded; the rows of the others were there.
        bytes_read: from the checkpoint.
        bytes: of the table.
        seconds: that this run spent on it.
        kept: share of the features' energy that the code keeps, every row counted alike, by a sample of one row in 64;
            None where the table is as it was.
        kept_first: the same when the plan's factor was first applied in this folder.
    """

    name: str
    sources: tuple[str, ...]
    rows: int
    source_width: int
    width: int
    changed: bool
    blocks: int
    encoded: int
    bytes_read: int
    bytes: int
    seconds: float
    kept: float | None
    kept_first: float | None


class TableWriter:
    """Writes one table, from where the journal says.

    Args:
        source: how the table is made.
        folder: whose state is to change; the file is made in its staging folder.
        name: of the file.
        journal: of the run.
        rows: of a block.
        before: what the folder holds of this table and may be taken from there, None for nothing.
        sync_bytes: bytes between two entries of the journal.
    """

    def __init__(
        self,
        source: TableSource,
        folder: Path,
        name: str,
        journal: TableJournal,
        *,
        rows: int,
        before: TableEntry | None,
        sync_bytes: int,
    ) -> None:
        self.source, self.folder, self.name, self.journal, self.rows = source, folder, name, journal, rows
        self.before, self.sync_bytes = before, sync_bytes
        self.progress = journal.progress.setdefault(source.name, TableProgress())
        self.energy = KeptEnergy.empty(sum(table.shape[1] for table in source.tables))
        if self.progress.energy is not None:
            self.energy = KeptEnergy.from_json(self.progress.energy)
        self.old = self._usable(before)
        self.seconds, self.first_row = 0.0, self.progress.rows
        if self.old is None and not self.progress.rows:
            self.progress.same = False

    def _usable(self, before: TableEntry | None) -> StoredTensor | None:
        """The rows that the folder holds, where they were made in the same way."""
        if before is None or (before.recipe, before.block_rows) != (self.source.recipe, self.rows):
            return None
        if before.sources != self._sources or before.rows > self.source.rows:
            return None
        return stored_table(self.folder, self.source.name, before)

    def write(self) -> TableReport:
        """Writes what is left to write, and returns once it is on the disk.

        Raises:
            UserError: nothing can be written there.
            FileFormatError: the checkpoint ends before its tables do.
        """
        started = time.perf_counter()
        source, progress = self.source, self.progress
        read_bytes = source.source_bytes // max(1, source.rows)
        begun = not progress.same and (progress.rows < source.rows or not source.rows)
        file = self._file(progress.rows) if begun else None
        noted, since = len(progress.digests), 0
        try:
            for block in read_blocks(source, progress.rows, self.rows):
                reused = self._is_there(block)
                if file is None and not reused:
                    file = self._begun(block.start)
                progress.same = file is None
                if file is not None:
                    rows = self._rows_before(block.start, block.stop) if reused else source.made(block.features)
                    file.append(rows)
                self._count(block, reused=reused)
                since += (block.stop - block.start) * (source.row_bytes + read_bytes)
                if since >= self.sync_bytes or progress.rows == source.rows:
                    self._note(file, noted)
                    noted, since = len(progress.digests), 0
        finally:
            if file is not None:
                file.close()
        self.seconds = time.perf_counter() - started
        return self._report()

    def entry(self) -> TableEntry:
        """What the manifest says of the table."""
        source, progress = self.source, self.progress
        kept, first = self._kept()
        return TableEntry(
            self.before.file if progress.same and self.before is not None else self.name,
            self._sources, source.rows, source.width, source.recipe, self.rows, tuple(progress.digests), kept, first,
        )  # fmt: skip

    def _report(self) -> TableReport:
        source, progress = self.source, self.progress
        kept, first = self._kept()
        return TableReport(
            name=source.name,
            sources=self._sources,
            rows=source.rows,
            source_width=sum(table.shape[1] for table in source.tables),
            width=source.width,
            changed=not progress.same,
            blocks=progress.encoded + progress.reused,
            encoded=progress.encoded,
            bytes_read=source.source_bytes * (source.rows - self.first_row) // max(1, source.rows),
            bytes=source.rows * source.row_bytes,
            seconds=self.seconds,
            kept=kept,
            kept_first=first,
        )

    @property
    def _sources(self) -> tuple[str, ...]:
        return tuple(table.name for table in self.source.tables)

    def _kept(self) -> tuple[float | None, float | None]:
        """The share of energy that the code keeps now, and when its factor was first applied."""
        if self.source.factor is None:
            return None, None
        kept, before = self.energy.share(self.source.factor), self.before
        known = before is not None and before.recipe == self.source.recipe
        return kept, before.kept_first if known and before is not None else kept

    def _file(self, rows: int) -> TableFile:
        shape = (self.source.rows, self.source.width)
        return TableFile(self.folder / PARTIAL / self.name, self.source.name, shape, self.source.dtype, rows=rows)

    def _begun(self, rows: int) -> TableFile:
        """A file that holds so many rows of the old table."""
        file = self._file(0)
        for start in range(0, rows, self.rows):
            file.append(self._rows_before(start, min(start + self.rows, rows)))
        return file

    def _is_there(self, block: Block) -> bool:
        """Whether the folder holds what would become of a block."""
        place = block.start // self.rows
        if self.old is None or self.before is None or block.stop > self.old.shape[0]:
            return False
        return place < len(self.before.digests) and self.before.digests[place] == block.digest

    def _rows_before(self, start: int, stop: int) -> Tensor:
        if self.old is None:
            raise UserError(f"'{self.folder}' was changed while it was written to; start again")
        return self.old.rows(start, stop)

    def _count(self, block: Block, *, reused: bool) -> None:
        progress = self.progress
        progress.rows = block.stop
        progress.reused, progress.encoded = progress.reused + reused, progress.encoded + (not reused)
        progress.digests.append(block.digest)
        if self.source.factor is not None:
            self.energy.add(self.source.factor, block.features)

    def _note(self, file: TableFile | None, noted: int) -> None:
        if file is not None:
            file.sync()
        self.progress.energy = None if self.source.factor is None else self.energy.as_json()
        self.journal.note(self.source.name, self.progress, self.progress.digests[noted:])
