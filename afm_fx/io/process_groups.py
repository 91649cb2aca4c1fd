"""What processes of a ``torch.distributed`` group tell each other: objects, sums, and that one of them failed."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from afm_fx.errors import AfmFxError, CalibrationError, OtherProcessError, UserError

Group = dist.ProcessGroup
Result = TypeVar("Result")

WAIT = timedelta(days=1)
"""How long a process waits for the slowest. One that died is noticed by its closed connection, or by torchrun."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_and_size(group: Group | None) -> tuple[int, int]:
    """The process's number in the group and how many there are; ``(0, 1)`` without one."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def own_device(kind: str) -> torch.device:
    """This process's device: with "cuda" the GPU of its number on this machine.

    Raises:
        UserError: there is no GPU of that number.
    """
    if kind == "cpu":
        return torch.device("cpu")
    number, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= available:
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
    if not all(name in os.environ for name in _TORCHRUN):
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


def check_group(group: Group | None) -> None:
    """Checks that there are processes to talk to.

    Raises:
        UserError: torch.distributed is not initialized, or the process is not of the group.
    """
    if group is None:
        return
    if not (dist.is_available() and dist.is_initialized()):
        raise UserError("a group was given, but torch.distributed has none: call init_process_group first")
    if dist.get_rank(group) < 0:
        raise UserError("this process is not a member of the group given; only members may call")


def attempt(compute: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """What a function returns, or what it raises, for :func:`agreed`: the other processes wait to be told of either."""
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001 - whatever it is, they wait
        return None, error


def agreed(group: Group | None, failure: Exception | None, told: Any = None) -> list[Any]:
    """Waits for all processes and gives what each tells, or raises in all of them where one failed.

    Args:
        group: the processes; None for this one alone.
        failure: what went wrong here, None for nothing.
        told: what the others should know; any object that can be pickled.

    Returns:
        What every process told, by rank.

    Raises:
        Exception: the failure given, where one was.
        OtherProcessError: another process failed, or died.
    """
    if group is None:
        if failure is not None:
            raise failure
        return [told]
    rank, world = rank_and_size(group)
    kind = "" if isinstance(failure, AfmFxError) else f"{type(failure).__name__}: "
    reason = None if failure is None else f"{kind}{failure}"
    gathered: list[Any] = [None] * world
    try:
        dist.all_gather_object(gathered, (reason, told if failure is None else None), group=group)
    except RuntimeError as error:  # gloo and nccl tell of a dead process in this way
        if failure is not None:
            raise failure from error
        raise died(error) from error
    if failure is not None:
        raise failure
    for other, (why, _) in enumerate(gathered):
        if why is not None:
            raise OtherProcessError(f"process {other} of {world} failed, so process {rank} stops too: {why}")
    return [each for _, each in gathered]


def check_alike(told: Sequence[Mapping[str, Any]], does: str = "calibrates") -> None:
    """Checks that all processes told the same.

    Raises:
        CalibrationError: naming the first that differs, and in what.
    """
    for rank, each in enumerate(told):
        differing = [name for name, value in told[0].items() if each.get(name) != value]
        if differing:
            raise CalibrationError(
                f"process {rank} of {len(told)} {does} something else than process 0: they differ in "
                f"{', '.join(differing)}"
            )


def add_up(tensor: Tensor, group: Group) -> Tensor:
    """The sum of a tensor over all processes, on the CPU; the tensor given may be overwritten.

    Raises:
        OtherProcessError: a process died.
    """
    nccl = dist.get_backend(group) == dist.Backend.NCCL  # which sends what lies on the process's own GPU
    sent = tensor.to(torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu")
    try:
        dist.all_reduce(sent, group=group)
    except RuntimeError as error:
        raise died(error) from error
    return sent.cpu()


def died(error: Exception) -> OtherProcessError:
    """The typed error for a lost connection."""
    text = " ".join(str(error).split())[:300]
    return OtherProcessError(f"another process of the group died or cannot be reached: {text}")
