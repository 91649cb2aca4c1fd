"""Measures serving latency of several versions of one model side by side.

All contenders are timed in one process in interleaved rounds, in a random order that changes with every round, so that
what the machine does meanwhile falls on all of them alike. Ratios are meaningful only within one such run, and only
those are given. A round starts each contender with one call that is not timed, which pays for the switch. A contender
on a device takes two turns a round: calls from host memory to host memory, and calls on what lies on the device.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.benchmark_result import BenchmarkResult, Settings, Timing
from afm_fx.contenders import Competitor, CompiledContender, Contender, OnnxFile, ProgramContender, make_contender
from afm_fx.errors import BatchError, BenchmarkError
from afm_fx.footprint import Footprint, measure_footprint
from afm_fx.inputs import Inputs, batch_flags
from afm_fx.latencies import Latencies, latencies
from afm_fx.machine import available_cores, this_machine
from afm_fx.model_contender import ModelFactory
from afm_fx.progress import progress_bar, track

MAX_DIFFERENT_BATCHES = 16
"""Contenders walk through at most this many different batches, so that a table's rows are not always the same few."""


def benchmark(
    contenders: Mapping[str, Competitor],
    inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 256, 4096),
    threads: int | None = 1,
    seconds: float = 1.0,
    min_repeats: int = 30,
    max_repeats: int = 10_000,
    rounds: int = 10,
    warmup: int = 10,
    seed: int = 0,
    memory: bool = False,
) -> BenchmarkResult:
    """Times every contender at every batch size.

    Args:
        contenders: name to ONNX file (on the CPU, or in :class:`afm_fx.OnnxFile` by any execution provider),
            AOTInductor package (``.pt2``), :class:`afm_fx.ModelFactory`, program (run eagerly, or in
            :class:`afm_fx.Compiled` by ``torch.compile``) or callable. The first is the reference of all ratios.
        inputs: rows of what the model takes (tensor, tuple or dict); cut, or repeated, to each batch size.
        batch_sizes: rows per call.
        threads: threads within an operator, for ONNX Runtime and torch alike; None for all cores.
        seconds: time spent on each contender at each batch size, about.
        min_repeats: timed calls at least, whatever they take.
        max_repeats: timed calls at most.
        rounds: turns that each contender takes at each batch size.
        warmup: calls before anything is timed (fewer, at least 2, where they would take longer than ``seconds``).
        seed: of the order of contenders within rounds.
        memory: also measure load time and memory of every file and model factory, each in a process of its own
            (a few seconds each); see :class:`afm_fx.footprint.Footprint`.

    Raises:
        BenchmarkError: no contenders, a missing or damaged file, impossible settings, or a contender that fails.
        BatchError: a contender does not take the inputs; it is named.
    """
    settings = Settings(
        batch_sizes=tuple(batch_sizes),
        threads=available_cores() if threads is None else threads,
        seconds=seconds,
        min_repeats=min_repeats,
        max_repeats=max_repeats,
        rounds=rounds,
        warmup=warmup,
        seed=seed,
    )
    _check(contenders, settings)
    entrants = [make_contender(name, competitor, settings.threads) for name, competitor in contenders.items()]
    lanes = _prepare(entrants, inputs, settings.batch_sizes)
    footprints = _footprints(contenders, inputs, entrants, settings) if memory else ()
    order = random.Random(seed)  # noqa: S311 - an order of play, not a secret
    timings: list[Timing] = []
    bar = progress_bar()
    bar.live.auto_refresh = False  # a thread that redraws would run into the timed calls
    with torch_threads(settings.threads), torch.inference_mode(), bar:
        task = bar.add_task("benchmark", total=len(settings.batch_sizes) * rounds)
        advance = functools.partial(bar.update, task, advance=1, refresh=True)
        for batch_size in settings.batch_sizes:
            measured = _measure(lanes[batch_size], settings, order, advance)
            timings += _timings(lanes[batch_size], measured, batch_size)
    return BenchmarkResult(this_machine(), settings, tuple(timings), footprints)


def _check(contenders: Mapping[str, Competitor], settings: Settings) -> None:
    if not contenders:
        raise BenchmarkError("there are no contenders to measure")
    if not settings.batch_sizes or min(settings.batch_sizes) < 1:
        raise BenchmarkError(f"batch sizes must be at least 1, got {list(settings.batch_sizes)}")
    if len(set(settings.batch_sizes)) < len(settings.batch_sizes):
        raise BenchmarkError(f"a batch size is given twice: {list(settings.batch_sizes)}")
    if settings.threads < 1:
        raise BenchmarkError(f"threads must be at least 1, got {settings.threads}")
    if not settings.seconds > 0:
        raise BenchmarkError(f"seconds must be positive, got {settings.seconds}")
    if settings.rounds < 1 or settings.warmup < 0 or not 1 <= settings.min_repeats <= settings.max_repeats:
        raise BenchmarkError(
            f"rounds must be at least 1, warmup at least 0 and 1 <= min_repeats <= max_repeats, got rounds "
            f"{settings.rounds}, warmup {settings.warmup}, min_repeats {settings.min_repeats}, max_repeats "
            f"{settings.max_repeats}"
        )


@dataclass(frozen=True)
class _Lane:
    """One contender's calls of one kind: end-to-end, or on the device only."""

    entrant: Contender
    on_device: bool
    calls: list[Callable[[], Any]]


def _prepare(entrants: list[Contender], inputs: Inputs, batch_sizes: Sequence[int]) -> dict[int, list[_Lane]]:
    """Lanes per batch size, the first contender's first; everything is checked before anything is timed."""
    flags = which_carry_the_batch(entrants, inputs)
    prepared = {}
    for batch_size in batch_sizes:
        batches = cut_batches(inputs, flags, batch_size)
        lanes = prepared[batch_size] = list[_Lane]()
        for entrant in entrants:
            lanes.append(_Lane(entrant, False, [entrant.prepare(batch) for batch in batches]))
            on_device = [call for batch in batches if (call := entrant.prepare_on_device(batch)) is not None]
            if on_device:
                lanes.append(_Lane(entrant, True, on_device))
    return prepared


def _footprints(
    contenders: Mapping[str, Competitor], inputs: Inputs, entrants: list[Contender], settings: Settings
) -> tuple[Footprint, ...]:
    flags = which_carry_the_batch(entrants, inputs)
    batches = [cut_batches(inputs, flags, size, most=1)[0] for size in sorted(settings.batch_sizes)]
    return tuple(
        measure_footprint(name, competitor, batches, settings.threads)
        for name, competitor in track(contenders.items(), "load times and memory")
        if isinstance(competitor, (str, os.PathLike, OnnxFile, ModelFactory))
    )


def which_carry_the_batch(entrants: list[Contender], inputs: Inputs) -> tuple[bool, ...]:
    """Which leaves of the inputs carry the batch: a program knows, otherwise it is what the first tensor tells."""
    for entrant in entrants:
        program = entrant.compiled.program if isinstance(entrant, CompiledContender) else None
        if isinstance(entrant, ProgramContender):
            program = entrant.program
        if program is not None:
            known = ProgramContender(entrant.name, program).batched(inputs)
            if known is not None:
                return known
    flags: tuple[bool, ...] = batch_flags((inputs,), {})
    if not any(flags):
        raise BatchError("the inputs hold no tensor with a batch axis")
    return flags


def cut_batches(
    inputs: Inputs, flags: tuple[bool, ...], batch_size: int, most: int = MAX_DIFFERENT_BATCHES
) -> list[Inputs]:
    """Consecutive cuts of the inputs; where they hold fewer rows than one batch, their rows repeated.

    Args:
        inputs: rows of what the contenders take.
        flags: which of their leaves carry the batch.
        batch_size: rows of a cut.
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


@dataclass(frozen=True)
class _Measured:
    """Nanoseconds of every timed call of one contender, round by round."""

    warmup: int
    rounds: tuple[tuple[int, ...], ...]

    def latencies(self) -> Latencies:
        """Percentiles over all rounds."""
        return latencies(np.concatenate(self.rounds))


def _measure(
    lanes: list[_Lane], settings: Settings, order: random.Random, advance: Callable[[], None]
) -> list[_Measured]:
    streams = [itertools.cycle(lane.calls) for lane in lanes]
    warmups, per_round = [], []
    for lane, stream in zip(lanes, streams, strict=True):
        spent = _warm_up(lane.entrant, stream, settings)
        warmups.append(len(spent))
        typical = float(np.median(spent[len(spent) // 2 :])) / 1e9
        repeats = min(max(math.ceil(settings.seconds / typical), settings.min_repeats), settings.max_repeats)
        per_round.append(math.ceil(repeats / settings.rounds))
    spent_by_round: list[list[tuple[int, ...]]] = [[] for _ in lanes]
    for _ in range(settings.rounds):
        turns = list(range(len(lanes)))
        order.shuffle(turns)
        for turn in turns:
            with _no_garbage_collection():
                next(streams[turn])()
                spent_by_round[turn].append(_time(streams[turn], per_round[turn]))
        advance()
    return [_Measured(warmup, tuple(rounds)) for warmup, rounds in zip(warmups, spent_by_round, strict=True)]


def _warm_up(entrant: Contender, stream: Iterator[Callable[[], Any]], settings: Settings) -> tuple[int, ...]:
    """Nanoseconds of the calls that warm a contender up, at least 2."""
    spent: list[int] = []
    deadline = time.perf_counter() + settings.seconds
    try:
        while len(spent) < 2 or (len(spent) < settings.warmup and time.perf_counter() < deadline):
            spent += _time(stream, 1)
    except Exception as error:  # a callable or a runtime may raise anything
        reason = " ".join(str(error).split())[:300]
        raise BenchmarkError(f"contender '{entrant.name}' fails: {type(error).__name__}: {reason}") from error
    return tuple(spent)


def _time(stream: Iterator[Callable[[], Any]], repeats: int) -> tuple[int, ...]:
    spent = []
    clock = time.perf_counter_ns
    for call in itertools.islice(stream, repeats):
        start = clock()
        call()
        spent.append(clock() - start)
    return tuple(spent)


def _timings(lanes: list[_Lane], measured: list[_Measured], batch_size: int) -> list[Timing]:
    by_kind = {
        on_device: {
            lane.entrant.name: each
            for lane, each in zip(lanes, measured, strict=True)
            if lane.on_device is on_device
        }
        for on_device in (False, True)
    }  # fmt: skip
    reference = lanes[0].entrant.name
    timings = []
    for entrant in (lane.entrant for lane in lanes if not lane.on_device):
        own, first = by_kind[False][entrant.name], by_kind[False][reference]
        device, first_device = by_kind[True].get(entrant.name), by_kind[True].get(reference)
        medians = [float(np.median(spent)) for spent in own.rounds]
        ratios = [mine / float(np.median(other)) for mine, other in zip(medians, first.rounds, strict=True)]
        found = own.latencies()
        timings.append(
            Timing(
                contender=entrant.name,
                runtime=entrant.runtime,
                device=entrant.device,
                batch_size=batch_size,
                warmup=own.warmup,
                end_to_end=found,
                device_only=None if device is None else device.latencies(),
                rows_per_second=batch_size * found.calls / (sum(map(sum, own.rounds)) / 1e9),
                p50_range_us=(min(medians) / 1e3, max(medians) / 1e3),
                ratio=found.p50_us / first.latencies().p50_us,
                ratio_range=(min(ratios), max(ratios)),
                device_only_ratio=None
                if device is None or first_device is None
                else device.latencies().p50_us / first_device.latencies().p50_us,
            )
        )
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
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
