"""Peak memory of ``apply_plan`` on a model with one very large table.

Run as a module, it measures in its own fresh process and prints one line of JSON:
``python -m benchmarks.apply_memory ROWS WIDTH CODE_WIDTH``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import afm_fx
from benchmarks.criteo_shape import plant_spectrum
from benchmarks.resident_memory import peak_bytes, reset_peak, resident_bytes

CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 4, 1024


@dataclass(frozen=True)
class ApplyMemory:
    """Memory around one ``apply_plan``, in bytes.

    Attributes:
        table_rows: rows of the model's table.
        width: width of the table.
        code_width: width of the codes that replace it.
        model_bytes: parameters and buffers of the model.
        result_bytes: those of the compressed program.
        before_model: resident after imports and a first run on a tiny model, before the model was made.
        before_apply: resident just before ``apply_plan``, the model included.
        peak: largest resident during ``apply_plan``.
        seconds: time of ``apply_plan``.
    """

    table_rows: int
    width: int
    code_width: int
    model_bytes: int
    result_bytes: int
    before_model: int
    before_apply: int
    peak: int
    seconds: float

    @property
    def whole(self) -> float:
        """Peak above the process without a model, in model sizes: the model itself is 1 of it."""
        return (self.peak - self.before_model) / self.model_bytes

    @property
    def apply_alone(self) -> float:
        """Peak above the process with the model loaded, in model sizes."""
        return (self.peak - self.before_apply) / self.model_bytes


class LargeTableModel(nn.Module):
    """One large table, two fields that look it up, and a small MLP."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        table = torch.empty(rows, width)
        plant_spectrum(table, 0.5, torch.Generator().manual_seed(0))
        self.table = nn.Embedding.from_pretrained(table, freeze=False)
        self.hidden = nn.Linear(2 * width, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """Predicts click probabilities, [batch, 1], for ids, int64 [batch, 2]."""
        return torch.sigmoid(self.out(torch.relu(self.hidden(self.table(ids).flatten(1)))))


def planned(rows: int, width: int, code_width: int) -> tuple[afm_fx.Program, afm_fx.Plan]:
    """A captured model with such a table, and the plan to compress it."""
    generator = torch.Generator().manual_seed(1)

    def batch(size: int) -> Tensor:
        return torch.randint(0, rows, (size, 2), generator=generator)

    program = afm_fx.capture(LargeTableModel(rows, width).eval(), batch(4))
    statistics = afm_fx.calibrate(program, [batch(CALIBRATION_BATCH_SIZE) for _ in range(CALIBRATION_BATCHES)])
    return program, afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=code_width, linear=None))


def measure_here(rows: int, width: int, code_width: int) -> ApplyMemory:
    """Measures in this process, which should have done nothing else before."""
    # A model without weight to speak of first: it loads the parts of torch that are loaded on first use.
    afm_fx.apply_plan(*planned(100, width, code_width))
    before_model = resident_bytes()
    program, plan = planned(rows, width, code_width)
    before_apply = resident_bytes()
    reset_peak()
    start = time.perf_counter()
    result = afm_fx.apply_plan(program, plan)
    seconds = time.perf_counter() - start
    return ApplyMemory(
        table_rows=rows,
        width=width,
        code_width=code_width,
        model_bytes=program.state_bytes(),
        result_bytes=result.state_bytes(),
        before_model=before_model,
        before_apply=before_apply,
        peak=peak_bytes(),
        seconds=seconds,
    )


def measure_apart(rows: int, width: int, code_width: int) -> ApplyMemory:
    """Measures in a fresh process.

    Raises:
        RuntimeError: that process failed; its last words are in the message.
    """
    command = [sys.executable, "-m", "benchmarks.apply_memory", str(rows), str(width), str(code_width)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory failed: {done.stderr.strip()[-600:]}")
    return ApplyMemory(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(measure_here(*(int(argument) for argument in sys.argv[1:])))))
