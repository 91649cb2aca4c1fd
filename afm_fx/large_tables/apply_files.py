"""Applies a plan to a checkpoint on disk, whose tables may be larger than memory.

Every table of the plan is read in blocks of rows, encoded and written, one after the other, into a folder of
safetensors files that together are the state dict of ``apply_plan(program, plan)``. What has to be in memory is a few
blocks and everything that is no large table.

A table's file is named after the digest of what decides about its content, the bytes of the source rows and the factor,
and it has that name once it is complete and on the disk. So a file that is there is never made again: not after a run
that was interrupted, and not for a checkpoint that changed other tables. What a folder holds is what
``model.safetensors.index.json`` names, which is replaced last, in one step: readers find the state before or the new.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from filelock import FileLock, Timeout
from torch import Tensor, nn

from afm_fx.calibration import Statistics
from afm_fx.errors import FileFormatError, OutputExistsError, UserError
from afm_fx.io import (
    INDEX_SUFFIX,
    UNFINISHED,
    Snapshot,
    bytes_of,
    checkpoint_files,
    complete,
    move_into_place,
    open_checkpoint,
    open_safetensors,
    prefetched,
    refuse_existing_file,
    render_table,
    serialized,
    write_table,
)
from afm_fx.large_tables.absent_tables import LARGE_BYTES, Factory, storage_of, with_tables, without_tables
from afm_fx.large_tables.streamed_plan import StreamedPlan, TableSource, streamed_plan
from afm_fx.planning import Plan, Refit, refit_plan
from afm_fx.program import Inputs, Program
from afm_fx.runtime import ExportReport, place_outside, staged_export
from passes.codes import ROWS_PER_BLOCK

INDEX = f"model{INDEX_SUFFIX}"
LOCK = ".afm_fx.lock"
BLOCK_BYTES = 1 << 25
"""Blocks of the usual number of rows are made smaller until they have no more bytes than this."""

DIGEST_VERSION = 1
DIGITS = 32
MADE_HERE = f"-{'[0-9a-f]' * DIGITS}.safetensors"
"""How the names of files end that are known by a digest, as a pattern for ``Path.glob``."""

LONGEST_NAME = 100

ONNX_FILE = "low_rank.onnx"
INLINE_BYTES = 1024
"""Smaller tensors that are no tables stay in the ONNX file, where shape inference can see them."""


@dataclass(frozen=True)
class TableReport:
    """What became of one table.

    Attributes:
        name: of its parameter in the low-rank program.
        source_width: columns of the tables that were read.
        width: columns of the table that was made.
        encoded: whether its rows were encoded; otherwise its file was there.
    """

    name: str
    rows: int
    source_width: int
    width: int
    encoded: bool
    bytes: int
    seconds: float


@dataclass(frozen=True)
class AppliedFiles:
    """A low-rank program in a folder of files.

    Attributes:
        program: its large tables are the files, mapped, and may not be written to.
        tables: one report per table that was streamed.
        refit: the drift of the sites since the plan was made, where statistics were given.
    """

    folder: Path
    program: Program
    plan: Plan
    tables: tuple[TableReport, ...]
    bytes: int
    seconds: float
    refit: Refit | None = None

    def table(self) -> str:
        """The report as text, one line per table, and the drift."""
        rows = [
            (
                each.name,
                f"{each.rows:,}",
                f"{each.source_width} -> {each.width}",
                "encoded" if each.encoded else "as it was",
                f"{each.bytes / 1e6:,.1f} MB",
                f"{each.seconds:.1f}",
            )
            for each in self.tables
        ]
        title = f"{self.folder}: {self.bytes / 1e6:,.1f} MB in {self.seconds:.1f} s"
        text = render_table(title, ("table", "rows", "columns", "", "is", "seconds"), rows)
        return text if self.refit is None else f"{text}\n{self.refit.table()}"


def apply_to_files(
    model: str | Factory | nn.Module,
    checkpoint: str | os.PathLike[str],
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    example_inputs: Inputs | None = None,
    statistics: Statistics | None = None,
    rows: Iterable[Inputs] | None = None,
    force: bool = False,
    large_bytes: int = LARGE_BYTES,
) -> AppliedFiles:
    """Applies a plan to a checkpoint without loading its large tables.

    The plan may be of an earlier checkpoint of the model, and tables may have rows added at their end since.

    Args:
        model: ``package.module:factory`` or such a factory, called so that its large tensors have no memory; or a
            module, on torch's meta device where it is large (:func:`afm_fx.large_tables.absent_tables.without_tables`).
        checkpoint: a ``.safetensors`` file, an index of several, or a folder of ``torch.distributed.checkpoint``.
        plan: for this model.
        out: the folder to write to. It is complete once it holds ``model.safetensors.index.json``.
        example_inputs: one batch of at least 2 rows, where the model is a module.
        statistics: those that the plan was made from, to tell how far this checkpoint has drifted from it and to make
            its factors again (:func:`afm_fx.refit_plan`); tables are mapped for that. Without them, the plan's own
            factors are applied.
        rows: with the statistics, batches of recent rows for them.
        force: replace what the folder holds. Its files stay until the next change, for who has just read its index.
        large_bytes: tables of so many bytes or more are streamed, smaller ones loaded.

    Raises:
        OutputExistsError: the folder holds tables already and ``force`` is not set.
        ModelError: the model cannot be built, or the checkpoint is of another one.
        PlanError: the plan is for another model, or the statistics lack what it needs.
        FileFormatError: the checkpoint is damaged, or was replaced or written to while it was read.
        UserError: nothing can be written there, another process writes there, or rows are given without statistics.
    """
    folder = Path(out)
    if (folder / INDEX).exists() and not force:
        raise OutputExistsError(f"'{folder}' holds tables already; choose another folder or overwrite it (--force)")
    if rows is not None and statistics is None:
        raise UserError("rows are for making factors again, which needs the statistics that the plan was made from")
    started = time.perf_counter()
    source = Snapshot.of(checkpoint_files(Path(checkpoint)))
    absent = without_tables(model, Path(checkpoint), example_inputs, large_bytes=large_bytes)
    refit = None if statistics is None else refit_plan(absent.mapped(), plan, statistics, rows)
    applied = plan if refit is None else refit.plan
    streamed = streamed_plan(absent, applied)
    reports = write_state(streamed, applied, folder, source)
    stored = open_checkpoint(folder / INDEX)
    program = with_tables(streamed.program, {source.name: stored[source.name].mapped() for source in streamed.tables})
    size = sum(tensor.bytes for tensor in stored.values())
    return AppliedFiles(folder, program, applied, reports, size, time.perf_counter() - started, refit)


def export_onnx_over_files(
    applied: AppliedFiles, name: str = ONNX_FILE, *, check: bool = True, force: bool = False
) -> ExportReport:
    """Writes a low-rank program as an ONNX file beside the tables that refers to their files: nothing is copied.

    A safetensors file is a header and raw little-endian rows, which is what ONNX calls external data: a file, an offset
    and a length. The program is exported as it is, not packed: packing would stack the tables into another one. The
    ONNX file holds for the folder's present state; after the next change, export again.

    Args:
        applied: what :func:`afm_fx.apply_to_files` made.
        name: of the ONNX file, in the folder of the tables.
        check, force: see :func:`afm_fx.export_onnx`.

    Raises:
        OutputExistsError: the file exists and ``force`` is not set.
        UserError: the name is one of another folder.
        ExportError: see :func:`afm_fx.export_onnx`.
    """
    folder, target = applied.folder, applied.folder / name
    if target.name != name:
        raise UserError(f"'{name}' is no name of a file: the ONNX file stands beside the tables that it refers to")
    refuse_existing_file(target, force=force)
    state, tables = applied.program.graph_module.state_dict(), {table.name for table in applied.tables}
    stored = open_checkpoint(folder / INDEX)

    def place(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor | None:
        raw, held = getattr(tensor, "raw", None), stored.get(name)
        if held is None or (name not in tables and held.bytes <= INLINE_BYTES):
            return None
        if not isinstance(raw, Tensor) or storage_of(raw) != storage_of(state[name]):
            return None  # the exporter made another tensor of this name
        chunk, shape = held.chunks[0], ir.Shape(held.shape)
        file, offset, size = chunk.path.name, chunk.offset, held.bytes
        return ir.ExternalTensor(file, offset, size, tensor.dtype, shape=shape, name=name, base_dir=folder)

    def save(model: ir.Model, path: Path) -> None:
        place_outside(model, place)
        ir.save(model, path)

    # Not in a folder of its own: what it is checked with reads the tables' files beside it.
    staged = target.with_name(f".{name}.new")
    try:
        report = staged_export(applied.program, staged, save, batch_size=None, check=check, tolerance=None)
        move_into_place(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    return replace(report, path=target)


def write_state(
    streamed: StreamedPlan, plan: Plan, folder: Path, source: Snapshot | None = None
) -> tuple[TableReport, ...]:
    """Makes the tensors of a low-rank program what a folder holds.

    Args:
        source: the checkpoint's files before the first of them was read.

    Raises:
        FileFormatError: one of them has been replaced since; the folder holds what it held.
    """
    with _only_writer(folder) as (staging, before):
        reports: list[TableReport] = []
        places: dict[str, str] = {}
        for table in streamed.tables:
            started = time.perf_counter()
            places[table.name], encoded = _table_file(table, folder, staging)
            rows, width = table.shape
            size, seconds = rows * width * table.dtype.itemsize, time.perf_counter() - started
            reports.append(TableReport(table.name, rows, table.features, width, encoded, size, seconds))
        content = serialized(streamed.rest)
        rest = f"rest-{hashlib.sha256(content).hexdigest()[:DIGITS]}.safetensors"
        _write(folder / rest, content, staging)
        places |= dict.fromkeys(streamed.rest, rest)
        size = sum(report.bytes for report in reports) + sum(tensor.nbytes for tensor in streamed.rest.values())
        index = {"metadata": {"total_size": size, "plan": plan.digest}, "weight_map": dict(sorted(places.items()))}
        if source is not None:
            source.check()
        _write(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode(), staging)
        for file in folder.glob(f"*{MADE_HERE}"):
            if file.name not in before | set(places.values()):
                with contextlib.suppress(OSError):  # a system that lets no one delete what is mapped
                    file.unlink()
    return tuple(reports)


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Keeps other processes from writing to a folder; yields an empty one for incomplete files, and what is in use.

    The former stays where the body raises, which tells that the folder is unfinished (:mod:`afm_fx.io.checkpoints`).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder / LOCK), timeout=0):
            before = _files_of(folder)
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            (folder / UNFINISHED).mkdir()
            yield folder / UNFINISHED, before
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    except Timeout as error:
        raise UserError(f"another process is writing to '{folder}'") from error
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error}") from error


def _files_of(folder: Path) -> set[str]:
    """The files of what a folder holds.

    Raises:
        FileFormatError: the folder is somebody else's checkpoint, or its index is damaged.
    """
    if not (folder / INDEX).exists():
        return set()
    with complete(folder / INDEX, "index"):
        index: Mapping[str, Mapping[str, str]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = set(index["weight_map"].values())
        if "plan" not in index["metadata"]:
            raise FileFormatError(f"'{folder / INDEX}' names no plan: another program wrote it, and it is not replaced")
    return files


def _table_file(source: TableSource, folder: Path, staging: Path) -> tuple[str, bool]:
    """The name of a table's file, and whether it had to be made."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", source.name).strip(".-")[:LONGEST_NAME]
    read = [hashlib.sha256() for _ in source.tables]
    if any(folder.glob(f"{plain}{MADE_HERE}")):  # perhaps it is there already, which only its digest tells
        for _ in prefetched(_blocks(source, read)):
            pass
        name = f"{plain}-{_digest(source, read)}.safetensors"
        if _holds(folder / name, source):
            return name, False
        read = [hashlib.sha256() for _ in source.tables]
    blocks = map(source.encode, prefetched(_blocks(source, read)))
    write_table(staging / "table", source.name, source.shape, source.dtype, blocks)
    name = f"{plain}-{_digest(source, read)}.safetensors"
    move_into_place(staging / "table", folder / name)
    return name, True


def _blocks(source: TableSource, read: Sequence[hashlib._Hash]) -> Iterator[list[Tensor]]:
    """The rows of a table's sources, a block at a time; their bytes are added to a hash per source."""
    rows, widest = ROWS_PER_BLOCK, source.features * max(table.dtype.itemsize for table in source.tables)
    while rows > 1 and rows * widest > BLOCK_BYTES:
        rows //= 2
    for start in range(0, source.shape[0], rows):
        parts = [table.rows(start, min(start + rows, source.shape[0])) for table in source.tables]
        for part, hashed in zip(parts, read, strict=True):
            hashed.update(bytes_of(part))
        yield parts


def _digest(source: TableSource, read: Sequence[hashlib._Hash]) -> str:
    """What a table's file is known by, once all of its sources are read."""
    factor = None if source.factor is None else hashlib.sha256(serialized(source.factor.tensors())).hexdigest()
    tables = [
        [list(table.shape), str(table.dtype), hashed.hexdigest()]
        for table, hashed in zip(source.tables, read, strict=True)
    ]
    content = [DIGEST_VERSION, source.name, str(source.dtype), factor, tables]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:DIGITS]


def _holds(path: Path, source: TableSource) -> bool:
    """Whether a file is there, undamaged as far as its header and length tell."""
    try:
        found = open_safetensors(path)[source.name]
    except (FileFormatError, KeyError):
        return False
    return found.shape == source.shape and found.dtype == source.dtype


def _write(path: Path, content: bytes, staging: Path) -> None:
    (staging / path.name).write_bytes(content)
    move_into_place(staging / path.name, path)
