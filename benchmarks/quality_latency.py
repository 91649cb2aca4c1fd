"""Times what a quality run measured: the original and its measured plans, packed, in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import afm_fx
from afm_fx.measure import MAX_DIFFERENT_BATCHES

SECONDS = 1.0


def time_plans(
    program: afm_fx.Program,
    plans: Mapping[str, afm_fx.Plan],
    inputs: torch.Tensor,
    batch_sizes: Sequence[int],
    *,
    seconds: float = SECONDS,
) -> afm_fx.measure.Measurement:
    """Exports the original and every plan's program, packed, and times the files side by side on one thread.

    Args:
        program: the original.
        plans: by the name that the timing gives them.
        inputs: [rows, columns], rows of real traffic.
        batch_sizes: rows a call.
        seconds: of timing for each file and batch size, about.

    Raises:
        ExportError: a program cannot be exported, or its file disagrees with torch.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = {"original": Path(directory) / "original.onnx"}
        afm_fx.export_onnx(program, files["original"])
        for number, (name, plan) in enumerate(plans.items()):
            files[name] = Path(directory) / f"{number}.onnx"
            afm_fx.export_onnx(afm_fx.pack(afm_fx.apply_plan(program, plan)).program, files[name])
        rows = inputs[: max(batch_sizes) * MAX_DIFFERENT_BATCHES]
        return afm_fx.benchmark(files, rows, batch_sizes=batch_sizes, threads=1, seconds=seconds)
