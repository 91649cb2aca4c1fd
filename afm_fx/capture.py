"""Captures a trained model as a :class:`~afm_fx.program.Program`.

``torch.export`` is the front door: it follows Python that ``torch.fx`` tracing cannot (``len`` of a proxy, control
flow on shapes). Where it fails alone, a ``torch.fx`` trace of the model is exported instead.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from afm_fx.errors import CaptureError
from afm_fx.program import (
    Inputs,
    Program,
    batch_flags,
    copy_tree,
    dynamic_shapes_for,
    normalize_inputs,
    takes_single_dict,
)
from passes.canonicalize import Canonicalize
from passes.id_precision import ids_travel_as_float

MAX_REASON_CHARACTERS = 600
FLOAT32_EXACT_INTEGERS = 2**24


def capture(
    model: nn.Module | GraphModule | ExportedProgram,
    example_inputs: Inputs | None = None,
    *,
    dynamic_batch: bool = True,
) -> Program:
    """Captures a model as functional ATen operators.

    The model is captured in eval mode; the mode of each of its modules is restored afterwards. Parameters are
    shared with the model, never changed.

    Args:
        model: a module, a module traced with ``torch.fx``, or an exported program.
        example_inputs: one tensor, a tuple of positional inputs, or a dict (keyword inputs, or the dict of
            features that is the model's one argument). At least 2 rows: ``torch.export`` specializes on 0 and 1.
            May be left out for an exported program, which carries its own.
        dynamic_batch: let axis 0 of every input whose length is the batch's vary.

    Raises:
        CaptureError: ``torch.export`` refused the model, or the example inputs do not fit it.
    """
    if isinstance(model, ExportedProgram):
        return _from_exported(model, "ExportedProgram", single_dict=_exported_single_dict(model))
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"capture takes an nn.Module, a torch.fx.GraphModule or an ExportedProgram, got {type(model).__name__}"
        )
    if example_inputs is None:
        raise CaptureError("example_inputs are needed to capture an nn.Module (one batch of at least 2 rows)")
    single_dict = takes_single_dict(model, example_inputs)
    args, kwargs = normalize_inputs(example_inputs, single_dict)
    args, kwargs = copy_tree((args, kwargs))
    flags = batch_flags(args, kwargs)
    _check_example(args, kwargs, flags, dynamic_batch)
    shapes = dynamic_shapes_for((args, kwargs), flags) if dynamic_batch else None
    with _eval_mode(model):
        exported, front_door = _export(model, args, kwargs, shapes)
    return _from_exported(exported, front_door, single_dict=single_dict, dynamic_batch=dynamic_batch)


def _check_example(args: Any, kwargs: Any, flags: tuple[bool, ...], dynamic_batch: bool) -> None:
    if not any(flags):
        raise CaptureError("the example inputs hold no tensor with a batch axis")
    leaves = pytree.tree_leaves((args, kwargs))
    rows = next(leaf.shape[0] for leaf, flag in zip(leaves, flags, strict=True) if flag)
    if dynamic_batch and rows < 2:
        raise CaptureError(
            f"the example batch has {rows} row(s); give at least 2, because torch.export specializes on sizes 0 and 1"
        )


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> tuple[ExportedProgram, str]:
    try:
        return _quiet_export(model, args, kwargs, shapes), "torch.export"
    except Exception as error:  # noqa: BLE001 - torch.export raises many unrelated types
        first = error
    if not isinstance(model, GraphModule):
        try:
            with _quiet():
                traced = torch.fx.symbolic_trace(model)
            return _quiet_export(traced, args, kwargs, shapes), "torch.fx trace, then torch.export"
        except Exception:  # noqa: BLE001 - the first reason is the one worth telling
            pass
    raise CaptureError(_explain(model, first)) from first


def _quiet_export(model: nn.Module, args: Any, kwargs: Any, shapes: Any) -> ExportedProgram:
    with _quiet():
        return torch.export.export(model, args, kwargs or None, dynamic_shapes=shapes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's progress warnings; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _explain(model: nn.Module, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    caused_by = next((line for line in lines if line.startswith(("Caused by", "(Caused by"))), "")
    reason = lines[0] if lines else type(error).__name__
    reason = f"{reason} {caused_by}".strip()[:MAX_REASON_CHARACTERS]
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in reason:
        advice = (
            "the model decides something on the values of a batch (an `if` on tensor content, a mask that drops rows). "
            "Rewrite that place with torch.where or masking so that shapes do not depend on values"
        )
    elif "Constraints violated" in str(error) or "specialized" in str(error) or "Dim" in reason:
        advice = "the model fixes the batch size somewhere; capture with dynamic_batch=False, or remove the fixed size"
    else:
        advice = (
            "check that model(*example_inputs) runs in eval mode; replace Python side effects and untraceable calls, "
            "or pass a module that torch.export accepts"
        )
    return f"torch.export cannot capture {type(model).__name__}: {kind}: {reason}. What to try: {advice}."


def _from_exported(
    exported: ExportedProgram, front_door: str, *, single_dict: bool, dynamic_batch: bool = True
) -> Program:
    with _quiet():
        exported = exported.run_decompositions({})
        module = exported.module()
    if not isinstance(module, GraphModule):
        raise CaptureError(f"torch.export returned a {type(module).__name__}, not a GraphModule")
    module._forward_pre_hooks.clear()
    result = Canonicalize()(module)
    module = result.graph_module if result is not None else module
    if exported.example_inputs is None:
        raise CaptureError("the exported program carries no example inputs; export it again with them")
    args, kwargs = copy_tree(exported.example_inputs)
    flags = _symbolic_flags(module) if front_door == "ExportedProgram" else batch_flags(args, kwargs)
    return Program(
        graph_module=module,
        example_args=tuple(args),
        example_kwargs=dict(kwargs),
        batched=flags,
        dynamic_batch=dynamic_batch and (any(_symbolic_flags(module))),
        front_door=front_door,
        single_dict_argument=single_dict,
        warnings=_id_warnings(module),
    )


def _exported_single_dict(exported: ExportedProgram) -> bool:
    args, _ = exported.example_inputs or ((), {})
    return len(args) == 1 and isinstance(args[0], dict)


def _symbolic_flags(module: GraphModule) -> tuple[bool, ...]:
    flags = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            has_axis = isinstance(value, torch.Tensor) and value.dim() > 0
            flags.append(has_axis and isinstance(value.shape[0], torch.SymInt))
    return tuple(flags)


def _id_warnings(module: GraphModule) -> tuple[str, ...]:
    messages = []
    for table, rows in ids_travel_as_float(module, FLOAT32_EXACT_INTEGERS):
        message = (
            f"table '{table}' has {rows:,} rows but its ids travel as float32, which is exact only to 2^24 = "
            f"{FLOAT32_EXACT_INTEGERS:,}: ids beyond that COLLIDE with their neighbours. Feed ids as integers."
        )
        warnings.warn(message, UserWarning, stacklevel=4)
        messages.append(message)
    return tuple(messages)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode restored on the way out."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
