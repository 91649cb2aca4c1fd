"""What takes part in a measurement: an ONNX file under one of ONNX Runtime's execution providers, an AOTInductor
package, a model, a program or any callable under torch, compiled or not."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, BenchmarkError, UserError
from afm_fx.program import Inputs, Program, batch_flags, build_model, normalize_inputs, takes_single_dict
from afm_fx.runtime import KINDS, Provider, bind_batch, load_aoti, open_session, provider_of, read_artifact

Competitor: TypeAlias = "str | os.PathLike[str] | OnnxFile | ModelFactory | Program | Compiled | Callable[..., Any]"
"""What a user may enter: the path of an ONNX file or of a ``.pt2`` package, an ONNX file with its execution provider, a
model factory, a program, or a callable."""

Call: TypeAlias = Callable[[], Any]

AOTI_SUFFIX = ".pt2"


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file and what runs it.

    Attributes:
        provider: execution provider of ONNX Runtime: "cpu", "cuda", "tensorrt" or "openvino".
    """

    path: Path
    provider: str = "cpu"


@dataclass(frozen=True)
class ModelFactory:
    """A model that a measurement builds itself.

    Attributes:
        name: ``package.module:factory``, see :func:`afm_fx.program.user_model.build_model`.
        checkpoint: its weights, None for those that the factory gives it.
        compiled: whether ``torch.compile`` compiles it when its first batch arrives, for any batch size but 1 at once.
    """

    name: str
    checkpoint: Path | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Compiled:
    """A program that ``torch.compile`` compiles when its first batch arrives, with a free batch size.

    Threads of its loops are those that torch has when it is compiled, and a change compiles it again.
    """

    program: Program

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The compiled graph; call it as the program's graph module."""
        # One compilation for every batch size but 1, which torch always compiles apart.
        return torch.compile(self.program.graph_module, dynamic=self.program.dynamic_batch or None)


@dataclass(frozen=True)
class Contender:
    """One competitor, ready to be given batches.

    Attributes:
        runtime: what runs it: "ONNX Runtime", "AOTInductor", "torch" or "torch.compile"; "ONNX Runtime" is followed by
            the execution provider where that is not the CPU's.
        bind: makes a call of a batch, from host memory to host memory; raises BatchError where it does not fit, with a
            message that begins with a verb.
        program: what runs, where it is a program: it knows which of its inputs carry the batch.
    """

    name: str
    runtime: str
    bind: Callable[[Inputs], Call]
    program: Program | None = None

    def prepare(self, batch: Inputs) -> Call:
        """A call without arguments that runs the batch; only the call is timed.

        Raises:
            BatchError: the contender does not take this batch.
        """
        try:
            return self.bind(batch)
        except BatchError as error:
            raise BatchError(f"contender '{self.name}' {error}") from error


def make_contender(name: str, competitor: Competitor, threads: int) -> Contender:
    """Loads or wraps a competitor.

    Args:
        competitor: see :data:`Competitor`.
        threads: worker threads of ONNX Runtime within an operator; torch's are set by who measures.

    Raises:
        BenchmarkError: the file is missing or damaged, ONNX Runtime or its execution provider is not installed, the
            model cannot be built, or the competitor is none of these.
    """
    try:
        match competitor:
            case Program() | Compiled():
                return _program(name, competitor)
            case ModelFactory():
                return _model(name, competitor)
            case OnnxFile():
                return _onnx_file(name, competitor, threads)
            case str() | os.PathLike():
                path = Path(competitor)
                return _package(name, path) if path.suffix == AOTI_SUFFIX else _onnx_file(name, OnnxFile(path), threads)
            case _ if callable(competitor):
                return Contender(name, "torch", functools.partial(_bind_callable, competitor))
    except UserError as error:
        raise BenchmarkError(f"contender '{name}': {error}") from error
    raise BenchmarkError(
        f"contender '{name}' is a {type(competitor).__name__}; give the path of an ONNX file or "
        f"of a {AOTI_SUFFIX} package, a Program or a callable"
    )


def which_carry_the_batch(contenders: list[Contender], inputs: Inputs) -> tuple[bool, ...]:
    """Which leaves of the inputs carry the batch: a program knows, otherwise it is what the first tensor tells.

    Raises:
        BatchError: the inputs hold no tensor with a batch axis.
    """
    for program in (each.program for each in contenders if each.program is not None):
        try:
            bound = pytree.tree_leaves(program.bind(inputs))
        except BatchError:  # it takes them in another form
            continue
        carriers = {id(leaf) for leaf, flag in zip(bound, program.batched, strict=True) if flag}
        return tuple(id(leaf) in carriers for leaf in pytree.tree_leaves(inputs))
    flags: tuple[bool, ...] = batch_flags((inputs,), {})
    if not any(flags):
        raise BatchError("the inputs hold no tensor with a batch axis")
    return flags


def _program(name: str, competitor: Program | Compiled) -> Contender:
    """A program, eager or compiled. Typed inputs are taken as they are, or made of a batch of the original's."""
    function: Callable[..., Any]
    if isinstance(competitor, Compiled):
        program, function, runtime = competitor.program, competitor.function, "torch.compile"
    else:
        program, function, runtime = competitor, competitor, "torch"

    def bind(batch: Inputs) -> Call:
        try:
            try:
                args, kwargs = program.bind(batch)
            except BatchError:
                if program.original_inputs is None:
                    raise
                args, kwargs = program.bind(program.convert_inputs(batch))
        except BatchError as error:
            raise BatchError(f"does not take this batch: {error}") from error
        return functools.partial(function, *args, **kwargs)

    return Contender(name, runtime, bind, program=program)


def _arguments(function: Callable[..., Any], batch: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tuple is unpacked; a dict is keyword inputs of a module that names them, else one argument."""
    original = getattr(function, "_orig_mod", function)  # torch.compile's wrapper hides the names of a module's inputs
    single_dict = not isinstance(original, nn.Module) or takes_single_dict(original, batch)
    return normalize_inputs(batch, single_dict)


def _bind_callable(function: Callable[..., Any], batch: Inputs) -> Call:
    args, kwargs = _arguments(function, batch)
    return functools.partial(function, *args, **kwargs)


def _package(name: str, path: Path) -> Contender:
    """An AOTInductor package. Arguments are flattened before the call, as a C++ server would hold them."""
    package = load_aoti(path)
    return Contender(name, "AOTInductor", lambda batch: functools.partial(package.call, package.bind(batch)))


def _onnx_file(name: str, file: OnnxFile, threads: int) -> Contender:
    provider = provider_of(file.provider)
    artifact = read_artifact(file.path)
    session = open_session(artifact, provider, threads)
    runtime = "ONNX Runtime"
    if provider is not Provider.CPU:
        runtime += f" {KINDS[provider].name.removesuffix('ExecutionProvider')}"

    def feed(batch: Inputs) -> dict[str, Any]:
        tensors = bind_batch(batch, artifact.inputs, artifact.mapping)
        return {value.name: tensor.numpy(force=True) for value, tensor in zip(artifact.inputs, tensors, strict=True)}

    return Contender(name, runtime, lambda batch: functools.partial(session.run, None, feed(batch)))


def _model(name: str, factory: ModelFactory) -> Contender:
    model = build_model(factory.name, factory.checkpoint)[0]
    function: Callable[..., Any] = torch.compile(model, dynamic=True) if factory.compiled else model
    runtime = "torch.compile" if factory.compiled else "torch"
    return Contender(name, runtime, functools.partial(_bind_callable, function))
