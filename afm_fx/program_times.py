"""Times programs in ONNX Runtime, exported as they are."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.utils import _pytree as pytree

from afm_fx.benchmark import benchmark
from afm_fx.contenders import OnnxFile
from afm_fx.inputs import Inputs
from afm_fx.onnx_export import export_onnx
from afm_fx.program import Program
from afm_fx.random_inputs import random_inputs

BATCHES = 8
"""Different random batches that a program is timed on."""


def program_p50s_us(
    programs: Sequence[Program],
    inputs: Inputs,
    batch_size: int,
    *,
    threads: int = 1,
    provider: str = "cpu",
    seconds: float = 1.0,
) -> list[float]:
    """Median latencies of programs that take the same inputs, in microseconds, in one interleaved run.

    Raises:
        ExportError: a program cannot be exported.
        BenchmarkError: there is no such provider here, or it does not run a program.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = {str(place): OnnxFile(Path(directory) / f"{place}.onnx", provider) for place in range(len(programs))}
        for file, program in zip(files.values(), programs, strict=True):
            export_onnx(program, file.path, check=False)
        result = benchmark(files, inputs, batch_sizes=(batch_size,), threads=threads, seconds=seconds)
    return [result.timing(name, batch_size).p50_us for name in files]


def program_p50_us(program: Program, batch_size: int, threads: int, provider: str, seconds: float) -> float:
    """The same of one program, on random rows that are valid for it."""
    rows = BATCHES * batch_size if program.dynamic_batch else batch_size
    inputs = tuple(pytree.tree_leaves(random_inputs(program).draw(rows)))
    (p50,) = program_p50s_us([program], inputs, batch_size, threads=threads, provider=provider, seconds=seconds)
    return p50
