"""A user's PyTorch model in a benchmark: as it stands, or compiled by ``torch.compile``, on the CPU or on CUDA."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, BenchmarkError
from afm_fx.inputs import Inputs, normalize_inputs, takes_single_dict
from afm_fx.user_model import build_model


@dataclass(frozen=True)
class ModelFactory:
    """A model that a benchmark builds itself.

    Attributes:
        name: ``package.module:factory``, see :func:`afm_fx.user_model.build_model`.
        checkpoint: its weights, None for those that the factory gives it.
        compiled: whether ``torch.compile`` compiles it when its first batch arrives, for any batch size but 1 at once.
        device: "cpu" or "cuda".
    """

    name: str
    checkpoint: Path | None = None
    compiled: bool = False
    device: str = "cpu"

    def build(self) -> tuple[nn.Module, Inputs]:
        """The model in eval mode, on its device, and the factory's example inputs.

        Raises:
            BenchmarkError: there is no such device.
            ModelError: the factory is missing or fails, see :func:`afm_fx.user_model.build_model`.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BenchmarkError(
                f"'{self.name}' is to run on CUDA, but this PyTorch ({torch.__version__}) finds no CUDA device"
            )
        model, example = build_model(self.name, self.checkpoint)
        return model.to(self.device), example

    def examples(self) -> list[tuple[str, Tensor]]:
        """Name and example of every input tensor, as an exported file would name them.

        Raises:
            BenchmarkError: the inputs are nested deeper than a dict or a tuple of tensors.
        """
        import inspect  # noqa: PLC0415 - only here

        model, example = build_model(self.name)
        if isinstance(example, tuple) and len(example) == 1 and isinstance(example[0], dict):
            example = example[0]
        if isinstance(example, dict):
            pairs = list(example.items())
        else:
            leaves = list(example) if isinstance(example, (tuple, list)) else [example]
            pairs = list(zip(inspect.signature(model.forward).parameters, leaves, strict=False))
        if not pairs or not all(isinstance(value, Tensor) for _, value in pairs):
            raise BenchmarkError(
                f"'{self.name}' takes inputs that are nested deeper than a dict or a tuple of tensors; enter an "
                "exported file first, whose inputs have names"
            )
        return pairs


@dataclass(frozen=True)
class ModelContender:
    """A PyTorch model, ready to be given batches in host memory."""

    name: str
    model: nn.Module
    function: Callable[..., Any]
    runtime: str
    device: str

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """A call that brings the batch to the model's device, runs it and brings the outputs to host memory."""
        args, kwargs = self._bind(batch)
        if self.device == "cpu":
            return functools.partial(self.function, *args, **kwargs)
        return functools.partial(_copied_call, self.function, self.device, args, kwargs)

    def prepare_on_device(self, batch: Inputs) -> Callable[[], Any] | None:
        """A call on inputs that lie on the device, over when the device is done; None on the CPU."""
        if self.device == "cpu":
            return None
        args, kwargs = _moved(self._bind(batch), self.device)
        return functools.partial(_synchronised_call, self.function, args, kwargs)

    def _bind(self, batch: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return normalize_inputs(batch, takes_single_dict(self.model, batch))
        except (TypeError, ValueError) as error:
            raise BatchError(f"contender '{self.name}' does not take this batch: {error}") from error


def model_contender(name: str, factory: ModelFactory) -> ModelContender:
    """Builds a model for a benchmark.

    Raises:
        UserError: the model cannot be built, see :meth:`ModelFactory.build`.
    """
    model, _ = factory.build()
    function: Callable[..., Any] = torch.compile(model, dynamic=True) if factory.compiled else model
    runtime = "torch.compile" if factory.compiled else "torch"
    return ModelContender(name, model, function, runtime, factory.device)


def _moved(tree: Any, device: str) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)


def _copied_call(function: Callable[..., Any], device: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = _moved((args, kwargs), device)
    return _moved(function(*args, **kwargs), "cpu")  # a copy to host memory waits for the device


def _synchronised_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    outputs = function(*args, **kwargs)
    torch.cuda.synchronize()
    return outputs
