"""Calibration of a folder of Parquet files by processes as torchrun starts them: time, memory, and bytes sent.

The model is a DeepFM in the shape of Criteo's data, 26 tables and 13 dense features, and so are the files: a folder a
day, a column a field.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import afm_fx
from afm_fx.calibration import all_reduced
from afm_fx.data import FileBatches, open_data
from afm_fx.io import Group, joined_group, rank_and_size
from afm_fx.planning import SENSITIVITY_ROWS
from benchmarks.common.criteo_shape import CriteoShape
from benchmarks.common.resident_memory import peak_bytes, reset_peak, resident_bytes

SHAPE = CriteoShape()
BATCH_SIZE, GROUP_ROWS, DAYS, WARM_UP_BATCHES = 4096, 32_768, 4, 8

LOOK_EVERY = 30
"""Batches between two looks at all tensors."""


@dataclass(frozen=True)
class CalibrationRun:
    """One calibration.

    Attributes:
        processes: how many shared the rows.
        rows: of the data.
        seconds: from the common start to the merged result of the slowest process.
        peak_above: largest resident memory of process 0 above what it held after a warm-up on 8 batches, in bytes.
        resident: rows that process 0 had read, and its resident memory then above the same, in bytes.
        alive: rows that it had read, and the bytes of all tensors that Python knew then.
        reduced_bytes: of the numbers that each process gave to the others, once.
        site_bytes: the same by site.
        table_bytes: of those the counts of lookups, which are one number for every row of a table.
    """

    processes: int
    rows: int
    seconds: float
    peak_above: int
    resident: list[tuple[int, int]]
    alive: list[tuple[int, int]]
    reduced_bytes: int
    site_bytes: dict[str, int]
    table_bytes: int


def write_data(folder: Path, rows: int) -> int:
    """Writes rows as folders ``day=0`` to ``day=3`` of Parquet files; gives their bytes."""
    import pyarrow as pa  # noqa: PLC0415 - the extra parquet
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    for day in range(DAYS):
        path = folder / f"day={day}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        with pq.ParquetWriter(path, _schema(pa)) as writer:
            share = rows // DAYS + (day < rows % DAYS)
            for start in range(0, share, GROUP_ROWS):
                block = SHAPE.batch(min(GROUP_ROWS, share - start), seed=day * 100_000 + start).numpy()
                arrays = [
                    pa.array(block[:, place].astype(np.int32 if name.startswith("C") else np.float32))
                    for place, name in enumerate(column_names())
                ]
                writer.write_table(pa.table(arrays, schema=_schema(pa)))
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def column_names() -> list[str]:
    """Of the files, in the model's order."""
    fields = [f"C{field}" for field in range(1, SHAPE.sparse_fields + 1)]
    return fields + [f"I{field}" for field in range(1, SHAPE.dense_fields + 1)]


def _schema(pa: Any) -> Any:
    return pa.schema([(name, pa.int32() if name.startswith("C") else pa.float32()) for name in column_names()])


def measure(folder: Path, rows: int) -> CalibrationRun | None:
    """Calibrates on the first rows of a folder with all processes; the result is process 0's, None in the others."""
    torch.set_num_threads(1)
    with joined_group(torch.device("cpu")) as group:
        assert group is not None, "start it with torchrun"
        rank, world = rank_and_size(group)
        program = afm_fx.capture(SHAPE.deepfm(seed=0), SHAPE.batch(4, seed=0))
        batches = _Watched(open_data(folder), program, BATCH_SIZE, column_names())
        warm_up = world * WARM_UP_BATCHES * BATCH_SIZE
        options: dict[str, Any] = {"sensitivity_rows": SENSITIVITY_ROWS}
        afm_fx.calibrate(program, batches, max_rows=min(warm_up, rows), group=group, **options)
        sent = _Counted()
        dist.barrier(group)
        before = resident_bytes()
        reset_peak()
        batches.seen.clear()
        batches.alive.clear()
        start = time.perf_counter()
        with sent:
            statistics = afm_fx.calibrate(program, batches, max_rows=rows, group=group, **options)
        dist.barrier(group)
        seconds, peak = time.perf_counter() - start, peak_bytes()
    if rank != 0:
        return None
    return CalibrationRun(
        processes=world,
        rows=int(statistics.rows),
        seconds=seconds,
        peak_above=peak - before,
        resident=[(rows_read, held - before) for rows_read, held in batches.seen],
        alive=list(batches.alive),
        reduced_bytes=sum(sent.by_site.values()),
        site_bytes=sent.by_site,
        table_bytes=sent.table_bytes,
    )


@dataclass(frozen=True)
class _Watched(FileBatches):
    """Notes resident memory as batches are read.

    Attributes:
        seen: rows so far, and resident bytes.
        alive: rows so far, and bytes of tensors, now and then: to look through all objects takes a while.
    """

    seen: list[tuple[int, int]] = field(default_factory=list)
    alive: list[tuple[int, int]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        for inputs in super().__iter__():
            self.seen.append(((self.seen[-1][0] if self.seen else 0) + len(inputs[0]), resident_bytes()))
            if len(self.seen) % LOOK_EVERY == 0:
                self.alive.append((self.seen[-1][0], tensor_bytes()))
            yield inputs


def tensor_bytes() -> int:
    """Bytes of the memory of all tensors that Python knows."""
    tensors = [each for each in gc.get_objects() if type(each) in (Tensor, torch.nn.Parameter)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


class _Counted:
    """Counts what is given to ``all_reduced`` while it is entered, and of which sites it is."""

    def __init__(self) -> None:
        self.table_bytes = 0
        self.by_site: dict[str, int] = {}
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        self._patches.enter_context(mock.patch("afm_fx.calibration.calibration.all_reduced", self._look))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _look(self, own: afm_fx.Statistics, group: Group) -> afm_fx.Statistics:
        self.by_site = sent_bytes(own)
        self.table_bytes = sum(
            8 * counts.numel() for counts in {id(t): t.counts for t in own.traffic.values()}.values()
        )
        return all_reduced(own, group)


def sent_bytes(own: afm_fx.Statistics) -> dict[str, int]:
    """Bytes of the numbers that a process gives to the others, by site."""
    numbers = {"rows and batches": 2}
    for name, moments in own.moments.items():
        square = moments.width**2
        numbers[name] = 1 + moments.width + square + (1 + 2 * square if name in own.sensitivities else 0)
    for name, spread in own.activations.items():
        numbers[name] = numbers.get(name, 0) + 1 + 2 * len(spread.mean)
    for name, traffic in {id(traffic): (name, traffic) for name, traffic in own.traffic.items()}.values():
        numbers[name] += traffic.rows
    return {name: 8 * count for name, count in numbers.items()}


def run_by_processes(folder: Path, rows: int, processes: int) -> CalibrationRun:
    """:func:`measure` by fresh processes, started as torchrun does.

    Raises:
        ChildFailedError: one of them failed.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id="calibration",
    )
    found: CalibrationRun = elastic_launch(launch, measure)(folder, rows)[0]
    return found
