"""What one model of the zoo offers the tests, and the seeding that gives it realistic state."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

EXAMPLE_ROWS = 6
MODEL_SEED = 20240
SMALLEST_FAN_IN = 4


@dataclass(frozen=True)
class ZooEntry:
    """One model.

    Attributes:
        name: shown as the test's id.
        build: makes the module; its parameters are randomized afterwards.
        inputs: ``(rows, seed) -> inputs`` as the model takes them.
        needs_deepctr: whether building needs deepctr-torch.
        refused: a pattern of the reason why the model cannot be captured, None where it can.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Any]
    needs_deepctr: bool = False
    refused: str | None = None

    def load(self) -> tuple[nn.Module, Any]:
        """The model in eval mode with seeded, trained-looking state, and example inputs."""
        with torch.random.fork_rng():
            torch.manual_seed(MODEL_SEED)
            model = self.build()
            randomize(model, torch.Generator().manual_seed(MODEL_SEED))
        return model.eval(), self.inputs(EXAMPLE_ROWS, 0)


@torch.no_grad()
def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Non-zero biases, weights of unit gain, batch-norm statistics far from 0 and 1: nothing cancels by accident."""

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for parameter in model.parameters():
        fan_in = max(parameter[0].numel() if parameter.dim() > 1 else 0, SMALLEST_FAN_IN)
        parameter.copy_(normal(parameter) / math.sqrt(fan_in))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            if module.affine:
                module.weight.copy_(1 + 0.2 * normal(module.weight))
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(0.3 * normal(module.running_mean))
                module.running_var.copy_(0.5 + normal(module.running_var).abs())


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls a plain module the way its inputs ask for: a tensor, a tuple, a dict of keyword inputs or of features."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    parameters = inspect.signature(model.forward).parameters
    variadic = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if isinstance(inputs, dict) and (variadic or set(inputs) <= set(parameters)):
        return model(**inputs)
    return model(inputs)
