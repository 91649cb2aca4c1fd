"""One of several processes that hold the shards of one model, for ``tests/large_tables/test_sharded_tables.py``.

The first is the process of the test itself, which has the captured model already; the others are started by it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import afm_fx
from afm_fx.errors import PlanError

PATIENCE = timedelta(seconds=240)


def work(folder: Path, rank: int, processes: int, program: afm_fx.Program | None = None) -> dict[str, Any]:
    """Encodes in every way; returns what came out here."""
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=PATIENCE)
    try:
        return _work(folder, rank, processes, program)
    finally:
        dist.destroy_process_group()


def _work(folder: Path, rank: int, processes: int, program: afm_fx.Program | None) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (processes,))
    state = load_file(folder / "state.safetensors")
    plans = {name: afm_fx.Plan.load(folder / f"{name}.safetensors") for name in ("joint", "plain")}
    tables = {name for name in state if name.startswith(("tables.", "weights."))}
    by_rows = {
        name: distribute_tensor(tensor, mesh, [Shard(0)]) if name in tables else tensor
        for name, tensor in state.items()
    }
    found: dict[str, Any] = {name: encoded(plan, by_rows) for name, plan in plans.items()}
    by_columns = {"tables.2.weight": distribute_tensor(state["tables.2.weight"], mesh, [Shard(1)])}
    found["columns"] = encoded(plans["plain"], by_columns)
    mine = {name: tensor for at, (name, tensor) in enumerate(state.items()) if at % processes == rank}
    found["table-wise"] = encoded(plans["plain"], mine)
    try:
        afm_fx.large_tables.encode_sharded(plans["joint"], by_rows | {"weights.0.weight": state["weights.0.weight"]})
    except PlanError as error:
        found["placed differently"] = str(error)
    if program is not None:
        sharded = afm_fx.large_tables.with_tables(program, by_rows)
        found["program"] = {name: applied(sharded, plan) for name, plan in plans.items()}
    return found


def encoded(plan: afm_fx.Plan, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The encoded tensors, whole and in part, how they are placed, and what was sent until they were made."""
    with CommDebugMode() as sent:
        result = afm_fx.large_tables.encode_sharded(plan, state)
    counts = {str(each): count for each, count in sent.get_comm_counts().items() if count}
    sharded = {name: tensor for name, tensor in result.items() if isinstance(tensor, DTensor)}
    return {
        "sent": counts,
        "whole": {name: sharded[name].full_tensor() if name in sharded else result[name] for name in result},
        "placements": {name: str(tensor.placements) for name, tensor in sharded.items()},
        "rows here": {name: tensor.to_local().shape[0] for name, tensor in sharded.items()},
    }


def applied(program: afm_fx.Program, plan: afm_fx.Plan) -> dict[str, Any]:
    """What of the low-rank program's parameters lies here. Nothing here waits for the other processes."""
    with CommDebugMode() as sent:
        made = dict(afm_fx.apply_plan(program, plan).graph_module.named_parameters())
    sharded = {name: tensor for name, tensor in made.items() if isinstance(tensor, DTensor)}
    return {
        "sent": sent.get_total_counts(),
        "here": {name: (sharded[name].to_local() if name in sharded else made[name]).detach() for name in made},
        "sharded": set(sharded),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    into, place, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.save(work(into, place, count), into / f"{place}.pt")
