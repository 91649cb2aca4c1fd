"""Counts the copies between host and device that ONNX Runtime puts into a model.

Where an operator that runs on the CPU meets one that runs on the GPU, ONNX Runtime inserts ``MemcpyToHost`` and
``MemcpyFromHost``. They stand in the graph that it writes after optimising, which is read here without its weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from afm_fx.errors import FileFormatError, MissingPackageError, ProviderError
from afm_fx.execution_providers import KINDS, Provider, import_runtime, require_provider
from afm_fx.onnx_file import all_nodes, read_onnx
from afm_fx.onnx_sessions import session_options

COPIES = frozenset({"MemcpyToHost", "MemcpyFromHost"})
_WEIGHTS = "weights.data"


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
        runtime = import_runtime(path)
        kind = require_provider(runtime, Provider.CUDA)
    except (MissingPackageError, ProviderError):
        if provider is not None:
            raise
        return 0, "no CUDA here"
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = session_options(runtime, 1)
        options.optimized_model_filepath = str(optimized)
        # Without this the weights would be written into the one message, which holds less than 2 GB.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
        try:
            session = runtime.InferenceSession(str(path), options, providers=[kind.name], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors derive from nothing common
            reason = " ".join(str(error).split())[:300]
            raise FileFormatError(f"ONNX Runtime cannot load '{path}' on CUDA: {reason}") from error
        if kind.name not in session.get_providers():
            if provider is not None:
                raise ProviderError(f"provider '{provider}' could not be started; {kind.install}")
            return 0, "CUDA is installed here and could not be started"
        return sum(node.op_type in COPIES for node in all_nodes(read_onnx(optimized))), None
