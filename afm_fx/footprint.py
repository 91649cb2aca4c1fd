"""Load time and memory of one contender, measured in a process in which nothing else is loaded.

Contenders that share a process share its memory, so what each needs cannot be told apart there. The process imports
everything first, and keeps the batches; from then on, what grows is the contender's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from afm_fx.contenders import OnnxFile
from afm_fx.errors import BenchmarkError
from afm_fx.inputs import Inputs
from afm_fx.model_contender import ModelFactory

PROCESS = "afm_fx.footprint_process"
TIMEOUT = 1800.0
"""Seconds; compilation by ``torch.compile`` and engines of TensorRT take minutes."""


@dataclass(frozen=True)
class Footprint:
    """What one contender needs, alone in a process.

    Attributes:
        contender: its name.
        load_seconds: from the file or factory to something that can be called; the file was read before, so that it
            comes from the system's cache.
        first_call_seconds: the first call at the largest batch size, which compiles what is compiled on demand.
        host_loaded: bytes of resident memory that loading added, None where the system does not tell.
        host_peak: largest such growth while it was loaded and ran every batch size.
        device_loaded: bytes that the device had fewer after loading, None without a CUDA device that torch finds;
            what other processes take meanwhile counts as well.
        device_peak: the most that the device had fewer after a call.
    """

    contender: str
    load_seconds: float
    first_call_seconds: float
    host_loaded: int | None
    host_peak: int | None
    device_loaded: int | None
    device_peak: int | None


def measure_footprint(
    name: str, competitor: str | os.PathLike[str] | OnnxFile | ModelFactory, batches: Sequence[Inputs], threads: int
) -> Footprint:
    """Loads and runs a file or a model in a fresh process.

    Args:
        name: how results call it.
        competitor: what to load.
        batches: one per batch size, the largest last.
        threads: threads within an operator.

    Raises:
        BenchmarkError: the process failed; the message ends with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        order = Path(folder) / "order.pt"
        saved = [pytree.tree_flatten(batch) for batch in batches]
        torch.save(
            {
                "name": name,
                "competitor": json.dumps(_described(competitor)),
                "threads": threads,
                "batches": [(leaves, pytree.treespec_dumps(spec)) for leaves, spec in saved],
            },
            order,
        )
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter and this package
                [sys.executable, "-m", PROCESS, str(order)],
                env={**os.environ, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"contender '{name}' did not load and run within {TIMEOUT:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BenchmarkError(f"contender '{name}' fails in a process of its own: {told}")
    return Footprint(**json.loads(lines[-1]))


def _described(competitor: str | os.PathLike[str] | OnnxFile | ModelFactory) -> dict[str, Any]:
    """A competitor as JSON, read back by :func:`competitor_of`; paths are absolute."""
    if isinstance(competitor, ModelFactory):
        checkpoint = None if competitor.checkpoint is None else str(competitor.checkpoint.resolve())
        return {"kind": "model", **dataclasses.asdict(competitor), "checkpoint": checkpoint}
    file = competitor if isinstance(competitor, OnnxFile) else OnnxFile(Path(competitor))
    return {"kind": "file", "path": str(file.path.resolve()), "provider": file.provider}


def competitor_of(content: dict[str, Any]) -> OnnxFile | ModelFactory:
    """What :func:`_described` described."""
    fields = {key: value for key, value in content.items() if key != "kind"}
    if content["kind"] == "file":
        return OnnxFile(Path(fields["path"]), fields["provider"])
    checkpoint = fields.pop("checkpoint")
    return ModelFactory(checkpoint=None if checkpoint is None else Path(checkpoint), **fields)
