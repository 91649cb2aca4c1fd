"""Counts the copies between host and device that ONNX Runtime puts into a model.

Where an operator that runs on the CPU meets one that runs on the GPU, ONNX Runtime inserts ``MemcpyToHost`` and
``MemcpyFromHost``. They stand in the graph that it writes after optimising, which is read here without its weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from afm_fx.errors import MissingPackageError, ProviderError
from afm_fx.onnx_file import all_nodes, read_onnx
from afm_fx.onnx_runtime import KINDS, Provider, import_runtime, open_session, require_provider

COPIES = frozenset({"MemcpyToHost", "MemcpyFromHost"})


def count_copies(path: Path, provider: Provider | None) -> tuple[int, str | None]:
    """The copies per run, and the reason where they could not be counted.

    Args:
        path: an ONNX file whose tensors were checked.
        provider: where to run; None: CUDA where it is there.

    Raises:
        ProviderError: the provider asked for is not there.
        FileFormatError: ONNX Runtime cannot load the file there.
    """
    if provider is Provider.TENSORRT:
        return 0, "TensorRT compiles its part of a model, which cannot be written as ONNX again; ask for cuda"
    if provider is not None and KINDS[provider].device == "cpu":
        return 0, f"provider '{provider}' shares the host's memory"
    try:
        require_provider(import_runtime(), Provider.CUDA)
    except (MissingPackageError, ProviderError):
        if provider is not None:
            raise
        return 0, "no CUDA here"
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        try:
            open_session(path, Provider.CUDA, optimized=optimized)
        except ProviderError as error:
            if provider is not None:
                raise
            return 0, f"CUDA is installed here, but {error}"
        return sum(node.op_type in COPIES for node in all_nodes(read_onnx(optimized))), None
