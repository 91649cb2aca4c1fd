"""Times a program in ONNX Runtime, exported as it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch.utils import _pytree as pytree

from afm_fx.benchmark import benchmark
from afm_fx.contenders import OnnxFile
from afm_fx.onnx_export import export_onnx
from afm_fx.program import Program
from afm_fx.random_inputs import random_inputs

BATCHES = 8
"""Different random batches that a program is timed on."""


def program_p50_us(program: Program, batch_size: int, threads: int, provider: str, seconds: float) -> float:
    """Median latency of a program on random rows that are valid for it, in microseconds.

    Raises:
        ExportError: the program cannot be exported.
        BenchmarkError: there is no such provider here, or it does not run the program.
    """
    rows = BATCHES * batch_size if program.dynamic_batch else batch_size
    inputs = tuple(pytree.tree_leaves(random_inputs(program).draw(rows)))
    with tempfile.TemporaryDirectory() as directory:
        file = OnnxFile(Path(directory) / "program.onnx", provider)
        export_onnx(program, file.path, check=False)
        result = benchmark({"program": file}, inputs, batch_sizes=(batch_size,), threads=threads, seconds=seconds)
    return result.timing("program", batch_size).p50_us
