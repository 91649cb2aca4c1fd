"""What takes part in a benchmark: an ONNX file under one of ONNX Runtime's execution providers, an AOTInductor package,
a model, a program or any callable under torch, compiled or not."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from afm_fx.aoti_model import AotiModel, load_aoti
from afm_fx.errors import BatchError, BenchmarkError, UserError
from afm_fx.file_inputs import feed_of
from afm_fx.inputs import Inputs, normalize_inputs, takes_single_dict
from afm_fx.model_contender import ModelFactory, model_contender
from afm_fx.onnx_runtime import KINDS, Provider, open_session, provider_of
from afm_fx.program import Program

Competitor: TypeAlias = "str | os.PathLike[str] | OnnxFile | ModelFactory | Program | Compiled | Callable[..., Any]"
"""What a user may enter: the path of an ONNX file or of a ``.pt2`` package, an ONNX file with its execution provider, a
model factory, a program, or a callable."""

AOTI_SUFFIX = ".pt2"


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file and what runs it.

    Attributes:
        path: the file.
        provider: execution provider of ONNX Runtime: "cpu", "cuda", "tensorrt" or "openvino".
    """

    path: Path
    provider: str = "cpu"


class Contender(Protocol):
    """One competitor, ready to be given batches."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    @property
    def runtime(self) -> str:
        """What runs it: "ONNX Runtime" (with the execution provider where that is not the CPU's), "AOTInductor",
        "torch" or "torch.compile"."""
        ...

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        ...

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """A call without arguments that runs the batch, from host memory to host memory; only the call is timed.

        Raises:
            BatchError: the contender does not take this batch.
        """
        ...

    def prepare_on_device(self, batch: Inputs) -> Callable[[], Any] | None:
        """The same with inputs and outputs that stay on the device, over when the device is done; None on the CPU.

        Raises:
            BatchError: the contender does not take this batch.
        """
        ...


class OnCpu:
    """What all contenders on the CPU have in common: no device to time apart."""

    @property
    def device(self) -> str:
        """See :class:`Contender`."""
        return "cpu"

    def prepare_on_device(self, batch: Inputs) -> None:
        """See :class:`Contender`."""
        del batch


def make_contender(name: str, competitor: Competitor, threads: int) -> Contender:
    """Loads or wraps a competitor.

    Args:
        name: how results call it.
        competitor: path, program or callable.
        threads: worker threads of ONNX Runtime within an operator; torch's are set by who measures.

    Raises:
        BenchmarkError: the file is missing or damaged, ONNX Runtime or its execution provider is not installed, the
            model cannot be built, or the competitor is none of these.
    """
    if isinstance(competitor, Compiled):
        return CompiledContender(name, competitor)
    if isinstance(competitor, Program):
        return ProgramContender(name, competitor)
    if isinstance(competitor, (str, os.PathLike, OnnxFile, ModelFactory)):
        try:
            return _loaded(name, competitor, threads)
        except UserError as error:
            raise BenchmarkError(f"contender '{name}': {error}") from error
    if callable(competitor):
        return CallableContender(name, competitor)
    raise BenchmarkError(
        f"contender '{name}' is a {type(competitor).__name__}; give the path of an ONNX file or "
        f"of a {AOTI_SUFFIX} package, a Program or a callable"
    )


def _loaded(name: str, competitor: str | os.PathLike[str] | OnnxFile | ModelFactory, threads: int) -> Contender:
    if isinstance(competitor, ModelFactory):
        return model_contender(name, competitor)
    file = competitor if isinstance(competitor, OnnxFile) else OnnxFile(Path(competitor))
    if file.path.suffix == AOTI_SUFFIX:
        return AotiContender(name, load_aoti(file.path))
    return _onnx_contender(name, file, threads)


def _onnx_contender(name: str, file: OnnxFile, threads: int) -> OnnxContender:
    """Opens an ONNX file with the execution provider asked for, and no other instead."""
    provider = provider_of(file.provider)
    session = open_session(file.path, provider, threads)
    kind = KINDS[provider]
    runtime = "" if provider is Provider.CPU else f" {kind.name.removesuffix('ExecutionProvider')}"
    return OnnxContender(name, session, f"ONNX Runtime{runtime}", kind.device)


@dataclass(frozen=True)
class Compiled:
    """A program that ``torch.compile`` compiles when its first batch arrives, with a free batch size.

    Threads of its loops are those that torch has when it is compiled, and a change compiles it again.

    Attributes:
        program: what to compile.
    """

    program: Program

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The compiled graph; call it as the program's graph module."""
        # One compilation for every batch size but 1, which torch always compiles apart.
        return torch.compile(self.program.graph_module, dynamic=self.program.dynamic_batch or None)


@dataclass(frozen=True)
class ProgramContender(OnCpu):
    """A captured program, run eagerly by torch."""

    name: str
    program: Program
    runtime: str = "torch"

    def prepare(self, batch: Inputs) -> functools.partial[Any]:
        """Binds the batch, see :class:`Contender`."""
        try:
            args, kwargs = self._bind(batch)
        except BatchError as error:
            raise BatchError(f"contender '{self.name}' does not take this batch: {error}") from error
        return functools.partial(self.program, *args, **kwargs)

    def _bind(self, batch: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Typed inputs are taken as they are, or made of a batch of the original's."""
        if self.program.original_inputs is None:
            return self.program.bind(batch)
        try:
            return self.program.bind(batch)
        except BatchError:
            return self.program.bind(self.program.convert_inputs(batch))

    def batched(self, inputs: Inputs) -> tuple[bool, ...] | None:
        """Which leaves of the inputs carry the batch, None where the program does not take them as they are."""
        try:
            bound = pytree.tree_leaves(self.program.bind(inputs))
        except BatchError:
            return None
        carriers = {id(leaf) for leaf, flag in zip(bound, self.program.batched, strict=True) if flag}
        return tuple(id(leaf) in carriers for leaf in pytree.tree_leaves(inputs))


@dataclass(frozen=True)
class CallableContender(OnCpu):
    """Any callable. A tuple is unpacked; a dict is keyword inputs of a module that names them, else one argument."""

    name: str
    function: Callable[..., Any]
    runtime: str = "torch"

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """Binds the batch, see :class:`Contender`."""
        single_dict = not isinstance(self.function, nn.Module) or takes_single_dict(self.function, batch)
        args, kwargs = normalize_inputs(batch, single_dict)
        return functools.partial(self.function, *args, **kwargs)


@dataclass(frozen=True)
class OnnxContender:
    """An ONNX file under one of ONNX Runtime's execution providers."""

    name: str
    session: Any
    runtime: str = "ONNX Runtime"
    device: str = "cpu"

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """Binds the batch by name where it is a dict of the file's input names, else by position."""
        return functools.partial(self.session.run, None, self._feed(batch))

    def prepare_on_device(self, batch: Inputs) -> Callable[[], Any] | None:
        """A call on inputs that were copied to the device before, see :class:`Contender`."""
        return None if self.device == "cpu" else bound_call(self.session, self._feed(batch), self.device)

    def _feed(self, batch: Inputs) -> dict[str, Any]:
        try:
            return feed_of(self.session, batch)
        except BatchError as error:
            raise BatchError(f"contender '{self.name}' {error}") from error


def bound_call(session: Any, feed: Mapping[str, Any], device: str) -> Callable[[], Any]:
    """A call of a session on inputs that lie on a device, leaving its outputs there, over when the device is done.

    Args:
        session: of ONNX Runtime.
        feed: arrays in host memory by input name; they are copied now and not in the call.
        device: "cuda", or "cpu".
    """
    import onnxruntime  # noqa: PLC0415 - an extra (cpu or gpu); whoever has a session has it

    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device, 0)
    binding.synchronize_inputs()

    def call() -> Any:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return call


@dataclass(frozen=True)
class AotiContender(OnCpu):
    """An AOTInductor package. Arguments are flattened before the call, as a C++ server would hold them."""

    name: str
    model: AotiModel
    runtime: str = "AOTInductor"

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """Binds the batch, see :class:`Contender`."""
        try:
            tensors = self.model.bind(batch)
        except BatchError as error:
            raise BatchError(f"contender '{self.name}' {error}") from error
        return functools.partial(self.model.call, tensors)


@dataclass(frozen=True)
class CompiledContender(OnCpu):
    """A program under ``torch.compile``; its first calls compile it."""

    name: str
    compiled: Compiled
    runtime: str = "torch.compile"

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """Binds the batch, see :class:`Contender`."""
        bound = ProgramContender(self.name, self.compiled.program).prepare(batch)
        return functools.partial(self.compiled.function, *bound.args, **bound.keywords)
