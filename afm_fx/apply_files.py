"""Applies a plan to a checkpoint on disk, whose tables may be larger than memory.

Every table of the plan is read in blocks of rows, encoded and written, one after the other, into a folder of
safetensors files that together are the state dict of ``apply_plan(program, plan)``. What has to be in memory is a few
blocks and everything that is no large table. A run that was interrupted goes on where it was; before it is complete,
the folder is as it was before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save
from torch import nn

from afm_fx.absent_tables import LARGE_BYTES, Factory, replace_state, without_tables
from afm_fx.checkpoints import Checkpoint, open_checkpoint
from afm_fx.errors import OutputExistsError, UserError
from afm_fx.inputs import Inputs
from afm_fx.plan import Plan
from afm_fx.program import Program
from afm_fx.streamed_plan import StreamedPlan, streamed_plan
from afm_fx.table_file import write_durably
from afm_fx.table_folder import (
    PARTIAL,
    Manifest,
    TableEntry,
    commit,
    file_name,
    is_table_folder,
    locked,
    open_tables,
    read_manifest,
)
from afm_fx.table_journal import TableJournal
from afm_fx.table_stream import block_rows
from afm_fx.table_writer import SYNC_BYTES, TableReport, TableWriter
from afm_fx.tables import render_table
from passes.graph_checks import check_values

JOURNAL_VERSION = 1
"""Of what a journal means; part of every fingerprint."""


@dataclass(frozen=True)
class AppliedFiles:
    """A low-rank program in a folder of files.

    Attributes:
        folder: of the files.
        program: the program; its large tables are the files, mapped, and may not be written to.
        plan: that was applied.
        tables: one report per table that was streamed.
        bytes: of the folder's tensors.
        seconds: of the whole.
        resumed: whether an interrupted run was gone on with.
    """

    folder: Path
    program: Program
    plan: Plan
    tables: tuple[TableReport, ...]
    bytes: int
    seconds: float
    resumed: bool

    def table(self) -> str:
        """The report as text, one line per table."""
        rows = [
            (
                each.name,
                f"{each.rows:,}",
                f"{each.source_width} -> {each.width}",
                f"{each.encoded:,} of {each.blocks:,} blocks" if each.changed else "kept",
                f"{each.bytes_read / 1e6:,.1f} MB",
                f"{each.bytes / 1e6:,.1f} MB",
                f"{each.seconds:.1f}",
                "" if each.kept_first is None else f"{each.kept_first:.2%}",
                "" if each.kept is None else f"{each.kept:.2%}",
            )
            for each in self.tables
        ]
        columns = ("table", "rows", "columns", "encoded", "read", "is", "seconds", "kept first", "kept now")
        title = f"{self.folder}: {self.bytes / 1e6:,.1f} MB in {self.seconds:.1f} s"
        return render_table(title, columns, rows)


def apply_to_files(
    model: str | Factory | nn.Module,
    checkpoint: str | os.PathLike[str],
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    example_inputs: Inputs | None = None,
    force: bool = False,
    rows_per_block: int | None = None,
    large_bytes: int = LARGE_BYTES,
) -> AppliedFiles:
    """Applies a plan to a checkpoint without loading its large tables.

    Args:
        model: ``package.module:factory`` or such a factory, called so that its large tensors have no memory; or a
            module, on torch's meta device where it is large (:func:`afm_fx.absent_tables.without_tables`).
        checkpoint: a ``.safetensors`` file, an index of several, or a folder of ``torch.distributed.checkpoint``.
        plan: for this model.
        out: the folder to write to. It is complete once it holds ``model.safetensors.index.json``.
        example_inputs: one batch of at least 2 rows, where the model is a module.
        force: replace what the folder holds.
        rows_per_block: rows to encode at a time; by default those of ``apply_plan`` or, of wide rows, fewer. (It
            decides about nothing but memory and, in the last digit, rounding.)
        large_bytes: tables of so many bytes or more are streamed, smaller ones loaded.

    Raises:
        OutputExistsError: the folder holds tables already and ``force`` is not set.
        ModelError: the model cannot be built, or the checkpoint is of another one.
        PlanError: the plan is for another model.
        FileFormatError: the checkpoint is damaged.
        UserError: nothing can be written there, or another process writes there.
    """
    folder = Path(out)
    if is_table_folder(folder) and not force:
        raise OutputExistsError(f"'{folder}' holds tables already; choose another folder or overwrite it (--force)")
    opened = open_checkpoint(Path(checkpoint))
    absent = without_tables(model, opened, example_inputs, large_bytes=large_bytes)
    streamed = streamed_plan(absent, plan)
    return write_tables(streamed, opened, plan, folder, rows_per_block=rows_per_block)


def write_tables(
    streamed: StreamedPlan,
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    *,
    reuse: bool = False,
    rows_per_block: int | None = None,
    sync_bytes: int = SYNC_BYTES,
) -> AppliedFiles:
    """Writes the tensors of a low-rank program into a folder.

    Args:
        streamed: the program, and how its large tables are made.
        checkpoint: that they are made of.
        plan: that makes them.
        folder: to write to.
        reuse: take from what the folder holds the rows that would become the same.
        rows_per_block: see :func:`apply_to_files`.
        sync_bytes: bytes between two entries of the journal.

    Raises:
        UserError: see :func:`apply_to_files`.
    """
    started = time.perf_counter()
    if rows_per_block is not None and rows_per_block < 1:
        raise UserError(f"a block has at least 1 row, got {rows_per_block}")
    with locked(folder):
        before = read_manifest(folder) if is_table_folder(folder) else None
        known = before.tables if reuse and before is not None else {}
        blocks = {source.name: block_rows(source, rows_per_block) for source in streamed.tables}
        mark = _fingerprint(streamed, checkpoint, blocks, before, reuse=reuse)
        token = mark[:12]
        journal = TableJournal(folder / PARTIAL, mark)
        entries: dict[str, TableEntry] = {}
        reports = []
        try:
            for position, source in enumerate(streamed.tables):
                writer = TableWriter(
                    source, folder, file_name(source.name, position, token), journal,
                    rows=blocks[source.name], before=known.get(source.name), sync_bytes=sync_bytes,
                )  # fmt: skip
                reports.append(writer.write())
                entries[source.name] = writer.entry()
            rest = f"rest-{token}.safetensors"
            content = save({name: tensor.detach().clone().contiguous() for name, tensor in streamed.rest.items()})
            write_durably(folder / PARTIAL / rest, content)
        finally:
            journal.close()
        places = {name: entry.file for name, entry in entries.items()} | dict.fromkeys(streamed.rest, rest)
        name = f"manifest-{token}.json"
        files = (*sorted(set(places.values())), name)
        superseded = tuple(sorted(set(before.files) - set(files))) if before is not None else ()
        _finish(folder, Manifest(name, plan.digest, entries, files, superseded), places, before)
    program = _mapped(streamed, folder)
    total = sum(tensor.bytes for tensor in open_tables(folder).tensors.values())
    seconds = time.perf_counter() - started
    return AppliedFiles(folder, program, plan, tuple(reports), total, seconds, journal.resumed)


def _finish(folder: Path, manifest: Manifest, places: dict[str, str], before: Manifest | None) -> None:
    """Makes what was staged the folder's state, and deletes the files of the state before the last."""
    commit(folder, folder / PARTIAL, manifest, places)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    for name in set(before.superseded if before is not None else ()) - set(manifest.files) - set(manifest.superseded):
        with contextlib.suppress(OSError):  # a system that lets no one delete what is mapped
            (folder / name).unlink()


def _fingerprint(
    streamed: StreamedPlan, checkpoint: Checkpoint, blocks: dict[str, int], before: Manifest | None, *, reuse: bool
) -> str:
    """What a run is known by: with another plan, checkpoint or state of the folder, its files are not gone on with.

    Of the checkpoint's files it takes names, sizes and times of change, not the bytes.
    """
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in checkpoint.files]
    tables = [
        [each.name, each.recipe, blocks[each.name], [[one.name, one.shape, str(one.dtype)] for one in each.tables]]
        for each in streamed.tables
    ]
    content = [JOURNAL_VERSION, reuse, files, tables, None if before is None else list(before.files)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _mapped(streamed: StreamedPlan, folder: Path) -> Program:
    """The program with its tables as the folder has them."""
    stored = open_tables(folder).tensors
    module = streamed.program.clone().graph_module
    replace_state(module, {source.name: stored[source.name].mapped() for source in streamed.tables})
    check_values(module)
    return replace(streamed.program, graph_module=module)
