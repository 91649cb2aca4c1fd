"""Captures a trained model as a :class:`~afm_fx.program.Program`.

``torch.export`` is the front door: it follows Python that ``torch.fx`` tracing cannot (``len`` of a proxy, control
flow on shapes). Where it fails alone, a ``torch.fx`` trace of the model is exported instead.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import operator
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from afm_fx.errors import MAX_REASON_CHARACTERS, CaptureError
from afm_fx.io import quiet
from afm_fx.program.inputs import (
    Inputs,
    batch_flags,
    copy_tree,
    dynamic_shapes_for,
    normalize_inputs,
    takes_single_dict,
)
from afm_fx.program.program import Program
from passes.canonical import Canonicalize, UnifyLinears, erase_state_writes
from passes.graph import PassError, aten, get_attribute, is_random
from passes.sites import coarse_ids

_STANDARD = sysconfig.get_paths()["stdlib"]
_FOREIGN = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[1]}/")
"""Folders of torch and of this package: the user's own code lies elsewhere."""

COLLISION = "COLLIDE with their neighbours"
"""What a warning says of ids that travel as floats too coarse for their table."""

JAGGED = (
    "the example inputs hold a KeyedJaggedTensor of TorchRec, whose shapes depend on the data: make the model plain "
    "first (afm_fx.program.torchrec.plain)"
)

_TRAINING_MODE: dict[Any, int] = {
    aten.batch_norm.default: 5,
    aten._native_batch_norm_legit_functional.default: 5,
    aten.dropout.default: 2,
    aten.native_dropout.default: 2,
}
"""Operators that behave differently in training, with the position of their ``training`` flag."""

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

_WHOLE = frozenset(
    {
        aten.linear.default, aten.matmul.default, aten.einsum.default, aten.tensordot.default, aten.conv1d.default,
        aten.softmax.int, aten.layer_norm.default, aten.sym_size.int, aten.repeat_interleave.self_int,
        aten.where.ScalarOther, aten.where.ScalarSelf, aten.embedding_bag.padding_idx,
    }
)  # fmt: skip
"""Operators made of others that torch leaves whole where it makes a graph functional; others it takes apart."""

_REPLACED = frozenset({aten.lift_fresh_copy.default, aten.lift_fresh.default})
"""Operators with nothing inside that it replaces all the same."""

_OF_SIZES = frozenset({operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv})
"""Python's own operators, on sizes and on tuples."""


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
        dynamic_batch: let axis 0 of every input whose length is the batch's vary. The batch is the commonest length
            of axis 0 among the example inputs. An exported program keeps the dynamic axes it was exported with.

    Raises:
        CaptureError: ``torch.export`` refused the model, or the example inputs do not fit it.
    """
    if isinstance(model, ExportedProgram):
        program = _from_exported_program(model, example_inputs)
    elif isinstance(model, nn.Module):
        program = _from_module(model, example_inputs, dynamic_batch)
    else:
        raise CaptureError(
            f"capture takes an nn.Module, a torch.fx.GraphModule or an ExportedProgram, got {type(model).__name__}"
        )
    for message in program.warnings:
        warnings.warn(message, UserWarning, stacklevel=2)
    return program


def _from_module(model: nn.Module, example_inputs: Inputs | None, dynamic_batch: bool) -> Program:
    if example_inputs is None:
        raise CaptureError("example_inputs are needed to capture an nn.Module (one batch of at least 2 rows)")
    if any(map(_is_jagged, pytree.tree_leaves(example_inputs, is_leaf=_is_jagged))):
        raise CaptureError(JAGGED)
    single_dict = takes_single_dict(model, example_inputs)
    args, kwargs = copy_tree(normalize_inputs(example_inputs, single_dict))
    flags = batch_flags(args, kwargs)
    _check_example(args, kwargs, flags, dynamic_batch)
    with _eval_mode(model), _named_keywords(model, kwargs):
        shapes = dynamic_shapes_for(model, args, kwargs, flags)
        exported, front_door = _export(model, args, kwargs, shapes if dynamic_batch else None)
    program = _program(exported, args, kwargs, front_door, single_dict)
    return replace(program, batched=flags, dynamic_batch=dynamic_batch and program.dynamic_batch)


def _is_jagged(leaf: Any) -> bool:
    return type(leaf).__name__ == "KeyedJaggedTensor" and type(leaf).__module__.startswith("torchrec.")


def _from_exported_program(exported: ExportedProgram, example_inputs: Inputs | None) -> Program:
    if example_inputs is not None:
        args, kwargs = copy_tree(normalize_inputs(example_inputs, single_dict_argument=False))
    elif exported.example_inputs is not None:
        args, kwargs = copy_tree(exported.example_inputs)
    else:
        raise CaptureError("the exported program carries no example inputs; pass example_inputs")
    single_dict = len(args) == 1 and isinstance(args[0], dict)
    for node in exported.graph.nodes:
        position = _TRAINING_MODE.get(node.target)
        if position is not None and len(node.args) > position and node.args[position]:
            raise CaptureError(
                f"the program was exported in training mode (node '{node.name}' is {node.target} in training); "
                "call model.eval() and export it again"
            )
    return _program(exported, tuple(args), dict(kwargs), "ExportedProgram", single_dict)


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
        return _torch_export(model, args, kwargs, shapes), "torch.export"
    except Exception as error:  # noqa: BLE001 - torch.export raises many unrelated types
        first = error
    if not isinstance(model, GraphModule):
        try:
            with quiet():
                traced = torch.fx.symbolic_trace(model)
            return _torch_export(traced, args, kwargs, shapes), "torch.fx trace, then torch.export"
        except Exception:  # noqa: BLE001 - the first reason is the one worth telling
            pass
    raise CaptureError(_explain(model, first)) from first


def _torch_export(model: nn.Module, args: Any, kwargs: Any, shapes: Any) -> ExportedProgram:
    with quiet():
        return torch.export.export(model, args, kwargs or None, dynamic_shapes=shapes)


def _explain(model: nn.Module, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0].partition(" For more information")[0] if lines else "no reason given"
    details = [line.partition(". If ")[0] for line in lines[1:] if line.startswith(("Caused by", "(Caused by", "- "))]
    reason = " ".join([first, *details[:2]])[:MAX_REASON_CHARACTERS].rstrip(".")
    kind, place = type(error).__name__, _users_line(error)
    if "DataDependent" in kind or "data-dependent" in reason:
        advice = (
            "the model decides something on the values of a batch (an `if` on tensor content, a mask that drops rows). "
            "Rewrite that place so that shapes do not depend on values: `torch.where(condition, a, b)` for "
            "`a if condition else b`, `features * mask` for `features[mask]`"
        )
    elif "Constraints violated" in str(error):
        advice = (
            "the model fixes the batch size somewhere (`len(x)` and `int(x.shape[0])` do; `x.shape[0]` does not): "
            "remove the fixed size, or capture with dynamic_batch=False. If an input's axis 0 only happens to have the "
            "batch's length, give an example batch of another length"
        )
    else:
        advice = (
            "check that model(*example_inputs) runs in eval mode; replace Python side effects and untraceable calls, "
            "or pass a module that torch.export accepts"
        )
    return f"torch.export cannot capture {type(model).__name__}: {kind}: {reason}{place}. What to try: {advice}."


def _users_line(error: Exception) -> str:
    """Where in the user's own code an export failed: its innermost line, empty where there is none."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if _is_the_users(each.filename) and each.line]
    return f", at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _is_the_users(file: str) -> bool:
    """Whether a file is neither generated nor torch's, Python's or ours."""
    return not file.startswith(("<", *_FOREIGN)) and (not file.startswith(_STANDARD) or "site-packages" in file)


def _program(
    exported: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    front_door: str,
    single_dict: bool,
) -> Program:
    module = _graph_module(exported)
    written = erase_state_writes(module)
    try:
        Canonicalize()(module)
        if UnifyLinears()(module).modified:
            Canonicalize()(module)
    except PassError as error:
        raise CaptureError(f"the exported graph cannot be made canonical: {error}") from error
    symbolic = _symbolic_flags(module)
    return Program(
        graph_module=module,
        example_args=args,
        example_kwargs=kwargs,
        batched=symbolic,
        dynamic_batch=any(symbolic),
        front_door=front_door,
        single_dict_argument=single_dict,
        warnings=tuple(_warnings(module, written)),
    )


def _graph_module(exported: ExportedProgram) -> GraphModule:
    """The functional ATen graph with its state, free of the input checks that only fit the example."""
    names: dict[int, str] = {}
    for name, tensor in exported.state_dict.items():
        names.setdefault(id(tensor), name)
    try:
        with quiet():
            module = (exported if _is_functional(exported) else exported.run_decompositions({})).module()
    except Exception as error:  # torch raises many unrelated types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(f"torch.export cannot make the exported graph functional: {reason[0]}") from error
    if not isinstance(module, GraphModule):
        raise CaptureError(f"torch.export returned a {type(module).__name__}, not a GraphModule")
    module._forward_pre_hooks.clear()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            _register_constant(module, str(node.target))
            node.target = names.get(id(get_attribute(module, str(node.target))), node.target)
    return module


def _is_functional(exported: ExportedProgram) -> bool:
    """Whether decompositions, which take twice as long as the export itself, would leave every operator as it is."""
    return all(_stays_whole(node.target) for node in exported.graph.nodes if node.op == "call_function")


def _stays_whole(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return target in _OF_SIZES
    if target._schema.is_mutable or target in _REPLACED:
        return False
    return target in _WHOLE or not target.has_kernel_for_dispatch_key(_COMPOSITE)


def _register_constant(module: GraphModule, target: str) -> None:
    """Makes a plain tensor attribute a buffer, so that it counts and converts like all other state."""
    prefix, _, leaf = target.rpartition(".")
    owner = module.get_submodule(prefix)
    value = getattr(owner, leaf)
    if isinstance(value, torch.Tensor) and leaf not in owner._parameters and leaf not in owner._buffers:
        delattr(owner, leaf)
        owner.register_buffer(leaf, value)


def _symbolic_flags(module: GraphModule) -> tuple[bool, ...]:
    """Which inputs have a dynamic axis 0; where there are several symbols, those with the commonest one."""
    symbols: list[str | None] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            has_axis = isinstance(value, torch.Tensor) and value.dim() > 0
            symbols.append(str(value.shape[0]) if has_axis and isinstance(value.shape[0], torch.SymInt) else None)
    counted = collections.Counter(symbol for symbol in symbols if symbol is not None)
    batch = counted.most_common(1)[0][0] if counted else None
    return tuple(symbol is not None and symbol == batch for symbol in symbols)


def _warnings(module: GraphModule, written: list[str]) -> Iterator[str]:
    """What a user should know: state that is written, randomness in eval mode, ids too large for their format."""
    if written:
        yield f"the model changes {written} while it runs; the program gives the same outputs and changes nothing"
    random = next((node for node in module.graph.nodes if is_random(node)), None)
    if random is not None:
        yield f"the model is random even in eval mode (node '{random.name}', {random.target}): no two runs agree"
    for found in coarse_ids(module):
        yield (
            f"table '{found.table}' has {found.rows:,} rows but its ids travel as {found.dtype}, which is exact only "
            f"up to {found.exact_integers:,}: ids beyond that {COLLISION}. Feed ids as integers."
        )


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


@contextlib.contextmanager
def _named_keywords(model: nn.Module, kwargs: dict[str, Any]) -> Iterator[None]:
    """Names the keyword inputs of ``forward(**features)`` in its signature: ``torch.export`` reads them from there."""
    signature = inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters) or "forward" in vars(model):
        yield
        return
    named = [parameter for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    known = {parameter.name for parameter in named}
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs if name not in known]
    original = model.forward

    @functools.wraps(original)
    def forward(*args: Any, **keywords: Any) -> Any:
        return original(*args, **keywords)

    forward.__signature__ = signature.replace(parameters=[*named, *more])  # type: ignore[attr-defined]
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
