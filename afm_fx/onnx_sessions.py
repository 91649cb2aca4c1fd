"""ONNX files under ONNX Runtime: opened with a fixed number of threads, fed with batches of torch tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afm_fx.errors import BatchError, FileFormatError, ProviderError
from afm_fx.execution_providers import KINDS, Provider, import_runtime, open_inference_session
from afm_fx.file_inputs import file_tensors
from afm_fx.input_mapping import METADATA_KEY
from afm_fx.inputs import Inputs

ONNX_TYPES = {
    torch.float32: "tensor(float)", torch.float64: "tensor(double)", torch.float16: "tensor(float16)",
    torch.bfloat16: "tensor(bfloat16)", torch.bool: "tensor(bool)", torch.uint8: "tensor(uint8)",
    torch.int8: "tensor(int8)", torch.int16: "tensor(int16)", torch.int32: "tensor(int32)",
    torch.int64: "tensor(int64)",
}  # fmt: skip


CPU = KINDS[Provider.CPU].name


def open_session(path: Path, threads: int, provider: str = CPU) -> Any:
    """An ONNX Runtime session that runs on one provider (see :mod:`afm_fx.execution_providers`).

    Args:
        path: the ONNX file.
        threads: worker threads within an operator; operators run one after the other.
        provider: ONNX Runtime's name of the execution provider.

    Raises:
        FileFormatError: there is no such file, ONNX Runtime cannot load it, or it refers to weights that are not all
            there or lie outside its folder.
        MissingPackageError: ONNX Runtime is not installed.
        ProviderError: the provider is not there, or does not run the whole file.
    """
    if not path.is_file():
        raise FileFormatError(f"there is no file '{path}'")
    runtime = import_runtime(path)
    chosen = next((each for each, kind in KINDS.items() if kind.name == provider), None)
    if chosen is None:
        raise ProviderError(f"there is no provider '{provider}'; there are {', '.join(k.name for k in KINDS.values())}")
    return open_inference_session(runtime, path, chosen, session_options(runtime, threads))


def session_options(runtime: Any, threads: int) -> Any:
    """``SessionOptions`` of so many threads within an operator; operators run one after the other."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


def feed_of(session: Any, batch: Inputs) -> dict[str, Any]:
    """What to give ``session.run``: by name where the batch is a dict of the file's input names, else by position.

    A file with typed inputs takes a batch of the original's too: its metadata tells how to convert it.

    Raises:
        BatchError: the file takes other inputs; the message begins with a verb.
    """
    wanted = session.get_inputs()
    names = [value.name for value in wanted]
    tensors = file_tensors(batch, names, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY))
    for value, tensor in zip(wanted, tensors, strict=True):
        check_tensor(value, tensor)
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def check_tensor(value: Any, tensor: Any, *, free_rows: bool = False) -> None:
    """Refuses a tensor that an input does not take.

    Args:
        value: the input as ONNX Runtime describes it.
        tensor: what is given for it.
        free_rows: accept any length of axis 0.

    Raises:
        BatchError: another shape or number format; the message begins with "takes".
    """
    if not isinstance(tensor, Tensor):
        raise BatchError(f"takes input '{value.name}' as a tensor, the batch holds a {type(tensor).__name__}")
    shape = list(tensor.shape)
    fits = len(shape) == len(value.shape) and all(
        not isinstance(size, int) or size == given or (free_rows and axis == 0)
        for axis, (size, given) in enumerate(zip(value.shape, shape, strict=True))
    )
    kind = ONNX_TYPES.get(tensor.dtype)
    if not fits or kind != value.type:
        raise BatchError(
            f"takes input '{value.name}' as {value.type} {value.shape}, the batch holds {kind or tensor.dtype} {shape}"
        )
