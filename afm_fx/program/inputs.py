"""What a model takes: batches as positional and keyword inputs, and which of their axes is the batch."""

from __future__ import annotations

import collections
import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, CaptureError

Inputs = Any
"""What a model takes: one tensor, a tuple of positional inputs, or a dict of keyword inputs (or of features)."""

MOST_ROWS = (1 << 31) - 1
"""Of a batch. Without a limit, ``torch.export`` finds a dynamic axis too long for models that multiply it."""

_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def normalize_inputs(inputs: Inputs, single_dict_argument: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Splits a batch into positional and keyword inputs."""
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping) and not single_dict_argument:
        return (), dict(inputs)
    return (inputs,), {}


def takes_single_dict(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a dict of inputs is the model's one argument rather than its keyword arguments."""
    if not isinstance(inputs, Mapping):
        return isinstance(inputs, tuple) and len(inputs) == 1 and isinstance(inputs[0], Mapping)
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return False
    if set(inputs) <= {parameter.name for parameter in parameters}:
        return False
    required = [p for p in parameters if p.kind in _NAMED and p.default is inspect.Parameter.empty]
    return len(required) <= 1 and not any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in required)


def batch_flags(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, ...]:
    """Which flattened inputs carry the batch: those whose axis 0 has the commonest length (the first one of equals)."""
    leaves = pytree.tree_leaves((args, kwargs))
    sizes = [leaf.shape[0] if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 else None for leaf in leaves]
    counted = collections.Counter(size for size in sizes if size is not None)
    batch = counted.most_common(1)[0][0] if counted else None
    return tuple(size is not None and size == batch for size in sizes)


def dynamic_shapes_for(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batched: tuple[bool, ...]
) -> dict[str, Any]:
    """One shared dynamic batch axis for every batched input, by the names of the module's arguments.

    Raises:
        CaptureError: the inputs do not fit the module's signature.
    """
    batch = torch.export.Dim("batch", max=MOST_ROWS)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    shapes = [
        {0: batch} if flag else ({} if isinstance(leaf, torch.Tensor) else None)
        for leaf, flag in zip(leaves, batched, strict=True)
    ]
    positional, keyword = pytree.tree_unflatten(shapes, spec)
    signature = inspect.signature(module.forward)
    try:
        return dict(signature.bind(*positional, **keyword).arguments)
    except TypeError as error:
        given = [*(f"input {position}" for position in range(len(args))), *kwargs]
        raise CaptureError(
            f"the example inputs ({', '.join(given)}) do not fit {type(module).__name__}.forward{signature}: {error}"
        ) from error


def align_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], example_args: tuple[Any, ...], example_kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs in the example's structure, dicts in its order (a graph takes its inputs flattened, by position).

    Raises:
        BatchError: naming the missing and the unexpected keys, or the place where the structure differs.
    """
    if len(args) != len(example_args):
        raise BatchError(
            f"the batch has {len(args)} positional inputs and keyword inputs {sorted(kwargs)}, the model takes "
            f"{len(example_args)} positional inputs and keyword inputs {sorted(example_kwargs)}"
        )
    names = ["batch"] if len(args) == 1 else [f"batch[{position}]" for position in range(len(args))]
    pairs = zip(args, example_args, names, strict=True)
    aligned = (tuple(_align(*pair) for pair in pairs), _align(kwargs, example_kwargs, "batch"))
    if pytree.tree_structure(aligned) != pytree.tree_structure((example_args, example_kwargs)):
        raise BatchError("the batch has another structure than the example inputs")
    return aligned


def _align(given: Any, example: Any, where: str) -> Any:
    if isinstance(example, dict):
        if not isinstance(given, Mapping):
            raise BatchError(f"{where} is a {type(given).__name__}, the model takes a dict with keys {list(example)}")
        missing = [key for key in example if key not in given]
        extra = [key for key in given if key not in example]
        if missing or extra:
            raise BatchError(f"{where} has the wrong keys: missing {missing}, unexpected {extra}")
        aligned = example.copy()
        aligned.update({key: _align(given[key], example[key], f"{where}[{key!r}]") for key in example})
        return aligned
    if isinstance(example, (list, tuple)):
        if not isinstance(given, (list, tuple)) or len(given) != len(example):
            size = f" of {len(given)}" if isinstance(given, (list, tuple)) else ""
            raise BatchError(
                f"{where} is a {type(given).__name__}{size}, the model takes a {type(example).__name__} "
                f"of {len(example)}"
            )
        pairs = enumerate(zip(given, example, strict=True))
        items = [_align(one, other, f"{where}[{at}]") for at, (one, other) in pairs]
        return type(example)(*items) if hasattr(example, "_fields") else type(example)(items)
    return given


def copy_tree(tree: Any) -> Any:
    """Detached copies of every tensor in a tree of inputs; mappings that are no dicts become dicts."""
    if isinstance(tree, Mapping) and not isinstance(tree, dict):
        tree = dict(tree)
    return pytree.tree_map(lambda leaf: copy_tree(leaf) if isinstance(leaf, Mapping) else _copy_leaf(leaf), tree)


def _copy_leaf(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else copy.copy(leaf)
