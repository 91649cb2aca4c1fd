"""The process group of a command that torchrun started."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from afm_fx.errors import UserError
from afm_fx.process_groups import Group

WAIT = timedelta(days=1)
"""How long a process waits for the slowest. One that died is noticed by its closed connection, or by torchrun."""

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun() -> bool:
    """Whether the environment names a process group to join."""
    return all(name in os.environ for name in _NEEDED)


def own_device(kind: str) -> torch.device:
    """This process's device: with "cuda" the GPU of its number on this machine.

    Raises:
        UserError: there is no such device.
    """
    if kind == "cpu":
        return torch.device("cpu")
    number, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if kind != "cuda" or number >= available:
        raise UserError(
            f"there is no device '{kind}' for process {number} of this machine: CUDA shows {available} GPUs to torch "
            f"{torch.__version__}; start one process per GPU, or use --device cpu"
        )
    return torch.device("cuda", number)


@contextlib.contextmanager
def joined_group(device: torch.device) -> Iterator[Group | None]:
    """Joins the processes that torchrun started (gloo on a CPU, nccl on a GPU), and leaves them at the end.

    Yields None where torchrun did not start this process.
    """
    if not started_by_torchrun():
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, world = next(iter(dist.rendezvous("env://")))
    # torchrun keeps one store over restarts, and a process must not find the addresses of those before it there.
    attempt = f"afm-fx/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{world}"
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(attempt, store),
        rank=rank,
        world_size=world,
        timeout=WAIT,
    )
    try:
        yield dist.group.WORLD
    finally:
        gc.collect()  # errors that were caught hold frames, and these the group, whose threads must not outlive Python
        dist.destroy_process_group()
