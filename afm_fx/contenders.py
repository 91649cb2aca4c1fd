"""What takes part in a benchmark: an ONNX file under ONNX Runtime, a program, or any callable under torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, BenchmarkError
from afm_fx.input_mapping import METADATA_KEY, InputMapping
from afm_fx.inputs import Inputs, normalize_inputs, takes_single_dict
from afm_fx.program import Program

Competitor: TypeAlias = "str | os.PathLike[str] | Program | Callable[..., Any]"
"""What a user may enter: the path of an ONNX file, a program, or a callable."""

_ONNX_TYPES = {
    torch.float32: "tensor(float)", torch.float64: "tensor(double)", torch.float16: "tensor(float16)",
    torch.bfloat16: "tensor(bfloat16)", torch.bool: "tensor(bool)", torch.uint8: "tensor(uint8)",
    torch.int8: "tensor(int8)", torch.int16: "tensor(int16)", torch.int32: "tensor(int32)",
    torch.int64: "tensor(int64)",
}  # fmt: skip


class Contender(Protocol):
    """One competitor, ready to be given batches."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    @property
    def runtime(self) -> str:
        """What runs it: "ONNX Runtime" or "torch"."""
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
        BenchmarkError: the file is missing or no valid ONNX file, ONNX Runtime is not installed, or the competitor is
            none of these.
    """
    if isinstance(competitor, Program):
        return ProgramContender(name, competitor)
    if isinstance(competitor, (str, os.PathLike)):
        return OnnxContender(name, _session(name, Path(competitor), threads))
    if callable(competitor):
        return CallableContender(name, competitor)
    raise BenchmarkError(
        f"contender '{name}' is a {type(competitor).__name__}; give the path of an ONNX file, a Program or a callable"
    )


@dataclass(frozen=True)
class ProgramContender:
    """A captured program, run eagerly by torch."""

    name: str
    program: Program
    runtime: str = "torch"

    def prepare(self, batch: Inputs) -> Callable[[], Any]:
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
        """Binds the batch by name where it is a dict of the file's input names, else by position.

        A file with typed inputs takes a batch of the original's too: its metadata tells how to convert it.
        """
        wanted = self.session.get_inputs()
        names = [value.name for value in wanted]
        tensors = self._converted(batch)
        if tensors is None:
            tensors = _tensors(batch, names)
        if len(tensors) != len(names):
            raise BatchError(
                f"contender '{self.name}' takes {len(names)} inputs ({', '.join(names)}), "
                f"the batch holds {len(tensors)}"
            )
        for value, tensor in zip(wanted, tensors, strict=True):
            self._check(value, tensor)
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
        return functools.partial(self.session.run, None, feed)

    def _converted(self, batch: Inputs) -> list[Tensor] | None:
        """The typed inputs of a batch of the original's; None where the file has none, or the batch is typed."""
        note = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if note is None:
            return None
        mapping = InputMapping.from_json(note)
        names = [each.name for each in mapping.originals]
        tensors = _tensors(batch, names)
        if [tuple(each.shape[1:]) for each in tensors] != [each.shape for each in mapping.originals]:
            return None
        if mapping.takes(_tensors(batch, [each.name for each in mapping.inputs])):
            return None
        try:
            converted = mapping.convert(dict(zip(names, tensors, strict=True)))
        except BatchError as error:
            raise BatchError(f"contender '{self.name}' does not take this batch: {error}") from error
        return [converted[value.name] for value in self.session.get_inputs()]

    def _check(self, value: Any, tensor: Tensor) -> None:
        shape = list(tensor.shape)
        fits = len(shape) == len(value.shape) and all(
            not isinstance(size, int) or size == given for size, given in zip(value.shape, shape, strict=True)
        )
        kind = _ONNX_TYPES.get(tensor.dtype)
        if not fits or kind != value.type:
            raise BatchError(
                f"contender '{self.name}' takes input '{value.name}' as {value.type} {value.shape}, "
                f"the batch holds {kind or tensor.dtype} {shape}"
            )


def _tensors(batch: Inputs, names: list[str]) -> list[Tensor]:
    """The tensors of a batch: by name where it is a dict of these names, else in their order."""
    if isinstance(batch, dict) and set(batch) == set(names):
        return [batch[name] for name in names]
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def _session(name: str, path: Path, threads: int) -> Any:
    if not path.is_file():
        raise BenchmarkError(f"contender '{name}': there is no file '{path}'")
    try:
        import onnxruntime  # noqa: PLC0415 - an extra (cpu or gpu); programs are measured without it
    except ImportError as error:
        raise BenchmarkError(
            f"contender '{name}' is an ONNX file, but ONNX Runtime is not installed: install afm-fx[cpu] or afm-fx[gpu]"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors derive from nothing common
        reason = " ".join(str(error).split())[:300]
        raise BenchmarkError(f"contender '{name}': ONNX Runtime cannot load '{path}': {reason}") from error
