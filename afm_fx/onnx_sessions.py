"""ONNX files under ONNX Runtime: opened with a fixed number of threads, fed with batches of torch tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afm_fx.errors import BatchError, FileFormatError, MissingPackageError
from afm_fx.file_inputs import file_tensors
from afm_fx.input_mapping import METADATA_KEY
from afm_fx.inputs import Inputs

_ONNX_TYPES = {
    torch.float32: "tensor(float)", torch.float64: "tensor(double)", torch.float16: "tensor(float16)",
    torch.bfloat16: "tensor(bfloat16)", torch.bool: "tensor(bool)", torch.uint8: "tensor(uint8)",
    torch.int8: "tensor(int8)", torch.int16: "tensor(int16)", torch.int32: "tensor(int32)",
    torch.int64: "tensor(int64)",
}  # fmt: skip


CPU = "CPUExecutionProvider"


def open_session(path: Path, threads: int, provider: str = CPU) -> Any:
    """An ONNX Runtime session.

    Args:
        path: the ONNX file.
        threads: worker threads within an operator; operators run one after the other.
        provider: ONNX Runtime's name of the execution provider.

    Raises:
        FileFormatError: there is no such file, or ONNX Runtime cannot load it.
        MissingPackageError: ONNX Runtime is not installed.
    """
    if not path.is_file():
        raise FileFormatError(f"there is no file '{path}'")
    try:
        import onnxruntime  # noqa: PLC0415 - an extra (cpu or gpu); programs run without it
    except ImportError as error:
        raise MissingPackageError(
            f"'{path}' is an ONNX file, but ONNX Runtime is not installed: install afm-fx[cpu] or afm-fx[gpu]"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's errors derive from nothing common
        reason = " ".join(str(error).split())[:300]
        raise FileFormatError(f"ONNX Runtime cannot load '{path}': {reason}") from error


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
        _check(value, tensor)
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _check(value: Any, tensor: Tensor) -> None:
    shape = list(tensor.shape)
    fits = len(shape) == len(value.shape) and all(
        not isinstance(size, int) or size == given for size, given in zip(value.shape, shape, strict=True)
    )
    kind = _ONNX_TYPES.get(tensor.dtype)
    if not fits or kind != value.type:
        raise BatchError(
            f"takes input '{value.name}' as {value.type} {value.shape}, the batch holds {kind or tensor.dtype} {shape}"
        )
