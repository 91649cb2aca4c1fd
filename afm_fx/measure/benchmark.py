"""Measures serving latency of several versions of one model side by side.

All contenders are timed in one process in interleaved rounds, in a random order that changes with every round, so that
what the machine does meanwhile falls on all of them alike. Ratios are meaningful only within one such run, and only
those are given. A round starts each contender with one call that is not timed, which pays for the switch. A call goes
from host memory to host memory, copies to and from a device included, as a service pays for it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, BenchmarkError
from afm_fx.io import available_cores, progress_bar, this_machine
from afm_fx.measure.contenders import Call, Competitor, Contender, make_contender, which_carry_the_batch
from afm_fx.measure.latencies import latencies
from afm_fx.measure.measurement import Measurement, Timing
from afm_fx.program import Inputs

MAX_DIFFERENT_BATCHES = 16
"""Contenders walk through at most this many different batches, so that a table's rows are not always the same few."""

WARMUP = 10
"""Calls before anything is timed; fewer, at least 2, where they would take longer than the timed calls."""

FEWEST_CALLS, MOST_CALLS = 30, 10_000
"""Timed calls of a contender at a batch size, whatever they take."""

SEED = 0
"""Of the order of contenders within rounds."""


def benchmark(
    contenders: Mapping[str, Competitor],
    inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 256, 4096),
    threads: int | None = 1,
    seconds: float = 1.0,
    rounds: int = 10,
) -> Measurement:
    """Times every contender at every batch size.

    Args:
        contenders: name to ONNX file (on the CPU, or in :class:`afm_fx.OnnxFile` by any execution provider),
            AOTInductor package (``.pt2``), :class:`afm_fx.ModelFactory`, program (run eagerly, or in
            :class:`afm_fx.Compiled` by ``torch.compile``) or callable. The first is the reference of all ratios.
        inputs: rows of what the model takes (tensor, tuple or dict); cut, or repeated, to each batch size.
        batch_sizes: rows per call.
        threads: threads within an operator, for ONNX Runtime and torch alike; None for all cores.
        seconds: time spent on each contender at each batch size, about (30 to 10,000 calls).
        rounds: turns that each contender takes at each batch size.

    Raises:
        BenchmarkError: no contenders, a missing or damaged file, impossible settings, or a contender that fails.
        BatchError: a contender does not take the inputs; it is named.
    """
    sizes, threads = tuple(batch_sizes), available_cores() if threads is None else threads
    _check(contenders, sizes, threads, seconds, rounds)
    entrants = [make_contender(name, competitor, threads) for name, competitor in contenders.items()]
    flags = which_carry_the_batch(entrants, inputs)
    # Everything is checked before anything is timed.
    lanes = {size: _lanes(entrants, cut_batches(inputs, flags, size)) for size in sizes}
    order = random.Random(SEED)  # noqa: S311 - an order of play, not a secret
    timings: list[Timing] = []
    bar = progress_bar()
    bar.live.auto_refresh = False  # a thread that redraws would run into the timed calls
    with torch_threads(threads), torch.inference_mode(), bar:
        task = bar.add_task("benchmark", total=len(sizes) * rounds)
        for size in sizes:
            for lane in lanes[size]:
                lane.warm_up(seconds, rounds)
            for _ in range(rounds):
                for lane in order.sample(lanes[size], len(lanes[size])):
                    lane.take_turn()
                bar.update(task, advance=1, refresh=True)
            timings += _timings(lanes[size], size)
    return Measurement(this_machine(), sizes, threads, seconds, rounds, tuple(timings))


def _check(
    contenders: Mapping[str, Competitor], sizes: tuple[int, ...], threads: int, seconds: float, rounds: int
) -> None:
    if not contenders:
        raise BenchmarkError("there are no contenders to measure")
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise BenchmarkError(f"batch sizes must be at least 1 and given once, got {list(sizes)}")
    if not (threads > 0 and seconds > 0 and rounds > 0):
        raise BenchmarkError(f"threads, seconds and rounds must be above 0, got {threads}, {seconds} and {rounds}")


def cut_batches(
    inputs: Inputs, flags: tuple[bool, ...], batch_size: int, most: int = MAX_DIFFERENT_BATCHES
) -> list[Inputs]:
    """Consecutive cuts of the inputs; where they hold fewer rows than one batch, their rows repeated.

    Args:
        flags: which of their leaves carry the batch.
        most: cuts at most.

    Raises:
        BatchError: the inputs hold no rows.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    rows = next(leaf.shape[0] for leaf, flag in zip(leaves, flags, strict=True) if flag)
    if rows == 0:
        raise BatchError("the inputs hold no rows")
    batches = []
    for start in range(max(1, min(rows // batch_size, most))):
        index = (torch.arange(batch_size) + start * batch_size) % rows
        cut = [
            leaf[index.to(leaf.device)].contiguous() if flag and isinstance(leaf, Tensor) else leaf
            for leaf, flag in zip(leaves, flags, strict=True)
        ]
        batches.append(pytree.tree_unflatten(cut, spec))
    return batches


@dataclass
class _Lane:
    """One contender's calls at one batch size.

    Attributes:
        rounds: nanoseconds of the timed calls, turn by turn.
    """

    contender: Contender
    calls: Iterator[Call]
    repeats: int = 0
    rounds: list[list[int]] = field(default_factory=list)

    def warm_up(self, seconds: float, rounds: int) -> None:
        """Makes calls that are not counted, at least 2, and sees how many fit into a turn.

        Raises:
            BenchmarkError: a call fails.
        """
        spent: list[int] = []
        deadline = time.perf_counter() + seconds
        try:
            while len(spent) < 2 or (len(spent) < WARMUP and time.perf_counter() < deadline):
                spent += self._time(1)
        except Exception as error:  # a callable or a runtime may raise anything
            raise failure_of(self.contender, error) from error
        typical = float(np.median(spent[len(spent) // 2 :])) / 1e9
        self.repeats = math.ceil(min(max(seconds / typical, FEWEST_CALLS), MOST_CALLS) / rounds)

    def take_turn(self) -> None:
        """Makes the timed calls of one round, after one that is not timed."""
        with no_garbage_collection():
            next(self.calls)()
            self.rounds.append(self._time(self.repeats))

    def _time(self, repeats: int) -> list[int]:
        spent = []
        clock = time.perf_counter_ns
        for call in itertools.islice(self.calls, repeats):
            start = clock()
            call()
            spent.append(clock() - start)
        return spent


def failure_of(contender: Contender, error: Exception) -> BenchmarkError:
    """What to raise where a call of a contender fails."""
    reason = " ".join(str(error).split())[:300]
    return BenchmarkError(f"contender '{contender.name}' fails: {type(error).__name__}: {reason}")


def _lanes(contenders: Sequence[Contender], batches: Sequence[Inputs]) -> list[_Lane]:
    return [_Lane(each, itertools.cycle([each.prepare(batch) for batch in batches])) for each in contenders]


def _timings(lanes: Sequence[_Lane], batch_size: int) -> list[Timing]:
    """What the lanes took, beside the first."""
    reference = np.asarray(lanes[0].rounds)
    timings = []
    for lane in lanes:
        spent = np.concatenate(lane.rounds)
        times, ratios = latencies(spent), np.median(lane.rounds, axis=1) / np.median(reference, axis=1)
        timings.append(
            Timing(
                lane.contender.name, lane.contender.runtime, batch_size, times,
                rows_per_second=batch_size * len(spent) / (float(spent.sum()) / 1e9),
                ratio=times.p50_us / latencies(reference.ravel()).p50_us,
                ratio_range=(float(ratios.min()), float(ratios.max())),
            )
        )  # fmt: skip
    return timings


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Pins torch's threads within an operator, and gives them back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keeps Python's collector from running into what is timed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
