"""One batch size of a session: inputs and outputs bound once to memory where the provider computes.

A batch is written into that memory, the rest of it filled with copies of its last row, the session runs, and as many
rows of the outputs are read as the batch has. The last row is repeated, and not zeros, because it holds ids that every
table has, and because what looks at a whole batch (the scales of int8 products) sees no value that the batch does not
hold.

A CUDA graph replays what was recorded at the addresses at which it was recorded, which is why the memory is bound once.
Several batch sizes of one file are told apart by ``gpu_graph_id``. ONNX Runtime runs a graph once or twice before it
records it; the calls that warm a bucket up see to that.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afm_fx.errors import FileFormatError
from afm_fx.runtime.artifact import Artifact, FileValue

GRAPH_ID = "gpu_graph_id"
WITHOUT_GRAPH = "-1"
"""As a graph's id: run without recording or replaying one."""


class Slot:
    """The memory of one input or output at one batch size.

    Attributes:
        value: what the input or output is.
        host: the content on the host, [rows, ...]; the memory itself where the device is the host.
        memory: an ``OrtValue`` on the device.
    """

    def __init__(self, runtime: Any, value: FileValue, host: np.ndarray, device: torch.device) -> None:
        self.value = value
        self.host = host
        self._runtime = runtime
        self._on_host = device.type == "cpu"
        # Releases before 1.23 or so take tensors of other packages only by way of the host.
        self.direct = not self._on_host and hasattr(runtime.OrtValue, "from_dlpack")
        # Built over an array of the host, an OrtValue is that array; on a device it is a copy.
        self.memory = runtime.OrtValue.ortvalue_from_numpy(host, device.type, device.index or 0)

    def write(self, tensor: Tensor, rows: int) -> None:
        """Copies rows into the memory and repeats the last one; what carries no batch is copied whole."""
        if tensor.is_cuda and self.direct:
            self.write_on_device(tensor)
            return
        array = tensor.numpy(force=True)
        if self.value.batched:
            self.host[:rows] = array
            self.host[rows:] = array[-1]
        else:
            self.host[...] = array
        if not self._on_host:
            self.memory.update_inplace(self.host)

    def write_on_device(self, tensor: Tensor) -> None:
        """Copies rows that lie on the device already, without a way over the host."""
        missing = self.host.shape[0] - tensor.shape[0] if self.value.batched else 0
        if missing:
            tensor = torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
        tensor = tensor.detach().contiguous()
        _wait_for_torch(tensor)
        self.memory.update_inplace(self._runtime.OrtValue.from_dlpack(tensor))

    def read(self, rows: int, *, on_device: bool) -> Tensor:
        """A copy of the rows, on the host or where the memory is; what carries no batch is read whole."""
        end = rows if self.value.batched else None
        if on_device and self.direct:
            result = torch.from_dlpack(self.memory)[slice(end)].clone()
            _wait_for_torch(result)
            return result
        content = self.host if self._on_host else self.memory.numpy()
        return torch.from_numpy(np.array(content[:end] if end is not None else content))


class Bucket:
    """A session at one batch size, every input and output bound."""

    def __init__(
        self,
        runtime: Any,
        session: Any,
        file: Artifact,
        example: Mapping[str, np.ndarray],
        *,
        rows: int,
        device: torch.device,
        graph_id: int | None = None,
    ) -> None:
        """Runs the example once, which tells the outputs' shapes, and binds memory for them.

        Args:
            runtime: the module ``onnxruntime``.
            example: valid inputs of so many rows by name.
            graph_id: number of the CUDA graph to record, None for none.

        Raises:
            FileFormatError: an output that should have a row per row of the batch has not.
        """
        self.rows = rows
        self._session = session
        self._lock = threading.Lock()
        self._options = None if graph_id is None else _run_options(runtime, str(graph_id))
        without_graph = None if graph_id is None else _run_options(runtime, WITHOUT_GRAPH)
        results = session.run(None, dict(example), without_graph)
        self._inputs = [Slot(runtime, each, np.array(example[each.name]), device) for each in file.inputs]
        self._outputs = []
        for value, result in zip(file.outputs, results, strict=True):
            if value.batched and result.shape[:1] != (rows,):
                raise FileFormatError(
                    f"output '{value.name}' of '{file.path}' has shape {list(result.shape)} for {rows} rows: a file "
                    "whose outputs have not one row per row of the batch cannot be padded to buckets"
                )
            self._outputs.append(Slot(runtime, value, np.array(result), device))
        self._binding = session.io_binding()
        for slot in self._inputs:
            self._binding.bind_ortvalue_input(slot.value.name, slot.memory)
        for slot in self._outputs:
            self._binding.bind_ortvalue_output(slot.value.name, slot.memory)

    def run(self, tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Runs at most ``self.rows`` rows; results are copies, on the device only where the inputs were."""
        on_device = any(tensor.is_cuda for tensor in tensors)
        with self._lock:  # the memory is one, the callers may be many
            for slot, tensor in zip(self._inputs, tensors, strict=True):
                slot.write(tensor, rows)
            self._session.run_with_iobinding(self._binding, self._options)
            return [slot.read(rows, on_device=on_device) for slot in self._outputs]


def _run_options(runtime: Any, graph_id: str) -> Any:
    options = runtime.RunOptions()
    options.add_run_config_entry(GRAPH_ID, graph_id)
    return options


def _wait_for_torch(tensor: Tensor) -> None:
    """ONNX Runtime has a stream of its own, so what torch was asked to do must be done."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
