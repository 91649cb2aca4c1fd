"""The process in which :mod:`afm_fx.footprint` loads and runs one contender; it prints one line of JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from afm_fx.contenders import AOTI_SUFFIX, OnnxFile, make_contender
from afm_fx.footprint import Footprint, competitor_of
from afm_fx.resident_memory import accounted, peak_bytes, reset_peak, resident_bytes

CALLS = 3
"""Of every batch: what a runtime keeps for later calls is there after the second."""


def footprint(name: str, described: str, threads: int, saved: list[tuple[list[Any], str]]) -> Footprint:
    """Measures in this process, which should have done nothing else before.

    Args:
        name: of the contender.
        described: the competitor as JSON.
        threads: threads within an operator.
        saved: leaves and structure of one batch per batch size.
    """
    batches = [pytree.tree_unflatten(leaves, pytree.treespec_loads(spec)) for leaves, spec in saved]
    competitor = competitor_of(json.loads(described))
    torch.set_num_threads(threads)
    if isinstance(competitor, OnnxFile) and competitor.path.suffix != AOTI_SUFFIX:
        import onnxruntime as _  # noqa: PLC0415 - an extra, imported before anything is measured
    host = accounted()
    free, before = _free_on_device(), resident_bytes() if host else 0
    if host:
        reset_peak()
    started = time.perf_counter()
    contender = make_contender(name, competitor, threads)
    load_seconds = time.perf_counter() - started
    loaded = resident_bytes() if host else 0
    free_loaded = _free_on_device()
    calls = [contender.prepare(batch) for batch in reversed(batches)]
    with torch.inference_mode():
        first_call_seconds = _seconds(calls[0])
        for call in calls:
            for _ in range(CALLS):
                call()
    free_after = _free_on_device()
    if contender.device == "cpu":
        free = None
    return Footprint(
        contender=name,
        load_seconds=load_seconds,
        first_call_seconds=first_call_seconds,
        host_loaded=loaded - before if host else None,
        host_peak=peak_bytes() - before if host else None,
        device_loaded=_taken(free, free_loaded),
        device_peak=_taken(free, free_after),
    )


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _taken(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else before - after


def _free_on_device() -> int | None:
    """Bytes free on the device. The runtimes' arenas give nothing back, so that the last look shows the peak."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info()[0])


def main(order: Path) -> None:
    """Reads what to measure and prints the result."""
    content = torch.load(order, weights_only=True)
    found = footprint(content["name"], content["competitor"], content["threads"], content["batches"])
    sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
