"""What takes part in a benchmark: an ONNX file under ONNX Runtime, an AOTInductor package, a program or any callable
under torch, compiled or not."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from afm_fx.aoti_model import AotiModel, load_aoti
from afm_fx.errors import BatchError, BenchmarkError, UserError
from afm_fx.inputs import Inputs, normalize_inputs, takes_single_dict
from afm_fx.onnx_sessions import feed_of, open_session
from afm_fx.program import Program

Competitor: TypeAlias = "str | os.PathLike[str] | Program | Compiled | Callable[..., Any]"
"""What a user may enter: the path of an ONNX file or of a ``.pt2`` package, a program, or a callable."""

AOTI_SUFFIX = ".pt2"


class Contender(Protocol):
    """One competitor, ready to be given batches."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    @property
    def runtime(self) -> str:
        """What runs it: "ONNX Runtime", "AOTInductor", "torch" or "torch.compile"."""
        ...

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """A call without arguments that runs the batch; only the call is timed.

        Raises:
            BatchError: the contender does not take this batch.
        """
        ...


def make_contender(name: str, competitor: Competitor, threads: int) -> Contender:
    """Loads or wraps a competitor.

    Args:
        name: how results call it.
        competitor: path, program or callable.
        threads: worker threads of ONNX Runtime within an operator; torch's are set by who measures.

    Raises:
        BenchmarkError: the file is missing or damaged, ONNX Runtime is not installed, or the competitor is none of
            these.
    """
    if isinstance(competitor, Compiled):
        return CompiledContender(name, competitor)
    if isinstance(competitor, Program):
        return ProgramContender(name, competitor)
    if isinstance(competitor, (str, os.PathLike)):
        return _file_contender(name, Path(competitor), threads)
    if callable(competitor):
        return CallableContender(name, competitor)
    raise BenchmarkError(
        f"contender '{name}' is a {type(competitor).__name__}; give the path of an ONNX file or "
        f"of a {AOTI_SUFFIX} package, a Program or a callable"
    )


def _file_contender(name: str, path: Path, threads: int) -> Contender:
    try:
        if path.suffix == AOTI_SUFFIX:
            return AotiContender(name, load_aoti(path))
        return OnnxContender(name, open_session(path, threads))
    except UserError as error:
        raise BenchmarkError(f"contender '{name}': {error}") from error


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
class ProgramContender:
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
class CallableContender:
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
    """An ONNX file under ONNX Runtime's CPU provider."""

    name: str
    session: Any
    runtime: str = "ONNX Runtime"

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """Binds the batch by name where it is a dict of the file's input names, else by position."""
        try:
            feed = feed_of(self.session, batch)
        except BatchError as error:
            raise BatchError(f"contender '{self.name}' {error}") from error
        return functools.partial(self.session.run, None, feed)


@dataclass(frozen=True)
class AotiContender:
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
class CompiledContender:
    """A program under ``torch.compile``; its first calls compile it."""

    name: str
    compiled: Compiled
    runtime: str = "torch.compile"

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
        """Binds the batch, see :class:`Contender`."""
        bound = ProgramContender(self.name, self.compiled.program).prepare(batch)
        return functools.partial(self.compiled.function, *bound.args, **bound.keywords)
