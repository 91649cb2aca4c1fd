"""Tells one program or data set from another, in a line."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from afm_fx.data_units import Unit, UnitBatches
from afm_fx.program import Program

SAMPLED_NUMBERS = 65_536
"""Numbers of a tensor that are looked at, evenly spread: reading a large table whole would take as long as a pass."""


def program_fingerprint(program: Program) -> str:
    """A digest of the graph, and of names, shapes and numbers of what it holds.

    Of tensors with more than 65,536 numbers so many are looked at: a retrained checkpoint is told, a single changed row
    of a large table may not be.
    """
    digest = hashlib.sha256(program.graph_module.code.encode())
    digest.update(f"{program.dtype} {program.input_names}".encode())
    state = program.graph_module.state_dict(keep_vars=True)
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_some_numbers(tensor).tobytes() if isinstance(tensor, Tensor) else b"")
    return digest.hexdigest()[:32]


def data_fingerprint(source: UnitBatches) -> str:
    """A digest of the units' names and rows, and of what the source says about itself."""
    digest = hashlib.sha256(source.identity.encode())
    digest.update(_described(source.units).encode())
    return digest.hexdigest()[:32]


def _described(units: Sequence[Unit]) -> str:
    return "\n".join(f"{unit.name} {unit.rows}" for unit in units)


def _some_numbers(tensor: Tensor) -> memoryview:
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // SAMPLED_NUMBERS)
    return memoryview(flat[::step].contiguous().cpu().view(torch.uint8).numpy())
