"""What the processes of a distributed test do: ``torchrun -m tests.calibration.distributed_worker FOLDER``.

Every process writes what it found into the folder; the test compares.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import afm_fx
from afm_fx.calibration.all_reduce import all_reduced
from afm_fx.data.data_files import open_data
from afm_fx.data.file_batches import FileBatches
from afm_fx.errors import AfmFxError
from afm_fx.io.process_groups import joined_group
from tests.calibration.some_statistics import MANY, WIDTHS, assert_whole, parts_of, reloaded

ROWS, BATCH_SIZE, GROUPS = 1_500, 32, (7, 450, 200, 343, 500)
OPTIONS: dict[str, Any] = {"sensitivity_rows": 300}


class Clicks(nn.Module):
    """Two fields with an embedding and a weight each (which join), dense features, and an MLP wider than 64."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Embedding(rows, 4) for rows in (50, 9))
        self.linear = nn.ModuleList(nn.Embedding(rows, 1) for rows in (50, 9))
        self.hidden = nn.Linear(10, 80)
        self.second = nn.Linear(80, 72)
        self.out = nn.Linear(72, 1)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        looked_up = [table(ids[:, field]) for field, table in enumerate(self.wide)]
        first = sum(table(ids[:, field]) for field, table in enumerate(self.linear))
        deep = torch.relu(self.hidden(torch.cat([*looked_up, dense], dim=1)))
        return torch.sigmoid(self.out(torch.relu(self.second(deep))) + first)


def clicks() -> tuple[nn.Module, dict[str, Tensor]]:
    """The model's factory."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Clicks().eval()
    return model, {"ids": torch.zeros(2, 2, dtype=torch.int64), "dense": torch.zeros(2, 2)}


@functools.cache
def program() -> afm_fx.Program:
    """The same in every process."""
    return afm_fx.capture(*clicks())


def columns() -> dict[str, np.ndarray]:
    """The rows."""
    random = np.random.default_rng(5)
    ids = np.stack([random.zipf(1.3, ROWS) % 50, random.integers(0, 9, ROWS)], axis=1)
    return {"ids": ids.astype(np.int64), "dense": (random.standard_normal((ROWS, 2)) * 3 + 50).astype(np.float32)}


def write_folder(folder: Path) -> None:
    """The rows as a Hive-partitioned folder of row groups of very different sizes."""
    import pyarrow as pa
    from pyarrow import parquet

    start = 0
    for number, rows in enumerate(GROUPS):
        part = {name: list(column[start : start + rows]) for name, column in columns().items()}
        path = folder / f"day={number // 2}" / f"part-{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(part), path, row_group_size=250)
        start += rows


def batches_of(folder: Path) -> FileBatches:
    return FileBatches(open_data(folder), program(), BATCH_SIZE)


def tensors(start: int, stop: int, size: int = BATCH_SIZE) -> list[dict[str, Tensor]]:
    """Some of the rows as batches in memory."""
    rows = {name: torch.from_numpy(column[start:stop]) for name, column in columns().items()}
    return [{name: each[at : at + size] for name, each in rows.items()} for at in range(0, stop - start, size)]


def clicks_that_die() -> tuple[nn.Module, dict[str, Tensor]]:
    """A factory for the command line, whose process 1 kills itself, the first time."""
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return clicks()


def merging(folder: Path) -> None:
    """Shares of files, own parts of uneven sizes with an empty one, and failures."""
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    exact = program().to(torch.float64)  # products in float32 depend on which batches are gathered for them
    shares = afm_fx.calibrate(exact, batches_of(folder / "data"), group=group, **OPTIONS)
    shares.save(folder / f"shares-{rank}.safetensors")
    half = afm_fx.calibrate(exact, batches_of(folder / "data"), share=(1, 2), group=group, **OPTIONS)
    half.save(folder / f"half-{rank}.safetensors")
    one_row_each = afm_fx.calibrate(program(), batches_of(folder / "data"), group=group, max_rows=5)
    one_row_each.save(folder / f"few-{rank}.safetensors")
    own = [tensors(0, 1_100), tensors(1_100, ROWS), []][rank % 3]
    parts = afm_fx.calibrate(exact, iter(own), group=group, **OPTIONS)
    parts.save(folder / f"parts-{rank}.safetensors")
    cut = afm_fx.calibrate(program(), tensors(0, 300), group=group, max_rows=200, sensitivity_rows=70)
    told = [f"cut {cut.rows} {cut.sensitivities['hidden'].rows}"]
    calls = {
        "a bad batch": lambda: afm_fx.calibrate(
            program(), [{"ids": torch.full((4, 2), 8 if rank != 1 else 99), "dense": torch.zeros(4, 2)}], group=group
        ),
        "other options": lambda: afm_fx.calibrate(
            program(), batches_of(folder / "data"), group=group, sensitivity_rows=rank
        ),
        "no rows at all": lambda: afm_fx.calibrate(program(), [], group=group),
    }
    for name, call in calls.items():
        try:
            call()
        except AfmFxError as error:
            told.append(f"{name}: {type(error).__name__}: {error}")
    (folder / f"told-{rank}.txt").write_text("\n".join(told), encoding="utf-8")
    assert world == 3


def summing(folder: Path) -> None:
    """All-reduces parts that come from files or not, with names in adverse orders; one part is added afterwards."""
    rank, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    choice = random.Random(7)  # noqa: S311 - no secret; the same in every process
    for turn in range(8):
        owners = [choice.randrange(3 + turn % 2) for _ in range(MANY)]  # in every other turn all rows are reduced
        orders = [choice.sample(list(WIDTHS), len(WIDTHS)) for _ in range(4)]
        loaded = [choice.random() < 0.5 for _ in range(3)]
        parts = parts_of(owners, orders)
        own = reloaded(parts[rank], folder / f"own-{rank}") if loaded[rank] else parts[rank]
        total = parts[3] + all_reduced(own, group)
        assert_whole(total)
    try:
        all_reduced(replace(own, origin={"the model": str(rank)}), group)
    except AfmFxError as error:
        (folder / f"summed-{rank}.txt").write_text(f"{turn} {error}", encoding="utf-8")


@functools.cache
def low_rank() -> afm_fx.Program:
    """The program with its hidden layer factored."""
    statistics = afm_fx.calibrate(program(), tensors(0, 500))
    return afm_fx.apply_plan(program(), afm_fx.make_plan(program(), statistics, afm_fx.Fixed(linear=4), basis="afm"))


def recovered(**options: Any) -> afm_fx.program.Change[afm_fx.recovery.RecoveryReport]:
    """Few batches, the last of 2 rows, so that three processes have one without rows."""
    batches, held_out = tensors(0, 20 * 24 + 2, 24), tensors(500, 900, 50)
    return afm_fx.recover(
        low_rank(), program(), batches, held_out=held_out, epochs=2, learning_rate=1e-4, seed=1, **options
    )


def recovering(folder: Path) -> None:
    """Recovery together, and recovery that fails in one process in the middle of an epoch."""
    rank, group = dist.get_rank(), dist.group.WORLD
    found = recovered(group=group, checkpoint=folder / "recovery.pt")
    again = recovered(group=group, checkpoint=folder / "recovery.pt")  # all epochs are on disk
    state = {name: value.clone() for name, value in found.program.graph_module.state_dict().items()}
    assert all(torch.equal(value, again.program.graph_module.state_dict()[name]) for name, value in state.items())
    torch.save([state, [epoch.logit_rmse for epoch in found.report.epochs]], folder / f"recovered-{rank}.pt")
    bad = tensors(0, 5 * 24, 24)
    if rank == 2:
        bad[3]["ids"][20, 1] = 99
    try:
        afm_fx.recover(low_rank(), program(), bad, held_out=tensors(200, 224), group=group)
    except AfmFxError as error:
        (folder / f"failed-{rank}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined_group(torch.device("cpu")):
        summing(Path(sys.argv[1]))
        merging(Path(sys.argv[1]))
        recovering(Path(sys.argv[1]))
