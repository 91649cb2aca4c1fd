"""The one door to ONNX Runtime: its execution providers by short names, and sessions that run on the one asked for.

A session uses the provider that was chosen, or is not opened. ONNX Runtime falls back in three ways; each is closed:

- It tries another provider where one cannot be created or fails in a run: ``enable_fallback`` and ``disable_fallback``.
- It logs a warning and goes on with the CPU where a provider's library does not load (a CUDA or cuDNN that is missing
  or of another version): the session's list of providers is looked at.
- It gives operators that a provider does not have to the CPU. ``session.disable_cpu_ep_fallback`` would refuse those,
  but it also refuses operators that only compute *shapes*, which the CUDA provider itself leaves to the CPU, where
  their results are wanted; every file with a free batch size may hold such. So ONNX Runtime is asked to record which
  operators it gave to whom, and what the CPU got is accepted only where it depends on nothing but shapes and constants.
  Releases that cannot record that are told to refuse any operator on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import onnx

from afm_fx.errors import FileFormatError, MissingPackageError, ProviderError, UserError
from afm_fx.runtime.artifact import Artifact


class Provider(StrEnum):
    """Where a session runs."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


@dataclass(frozen=True)
class ProviderKind:
    """What is known of a provider.

    Attributes:
        device: where its tensors lie, as ONNX Runtime calls it.
        install: what to do where it is missing.
        graph_option: the provider option that records a CUDA graph, None where it has none.
    """

    name: str
    device: str
    install: str
    graph_option: str | None = None


KINDS: Mapping[Provider, ProviderKind] = {
    Provider.CPU: ProviderKind("CPUExecutionProvider", "cpu", "install afm-fx[cpu]"),
    Provider.CUDA: ProviderKind(
        "CUDAExecutionProvider",
        "cuda",
        "install afm-fx[gpu] in an environment without onnxruntime (the two are one module), and the CUDA and cuDNN "
        "that it names",
        "enable_cuda_graph",
    ),
    Provider.TENSORRT: ProviderKind(
        "TensorrtExecutionProvider",
        "cuda",
        "install afm-fx[gpu] in an environment without onnxruntime (the two are one module), and the package tensorrt "
        "of the version that it names",
        "trt_cuda_graph_enable",
    ),
    Provider.OPENVINO: ProviderKind(
        "OpenVINOExecutionProvider",
        "cpu",
        "install the package onnxruntime-openvino in an environment without onnxruntime and onnxruntime-gpu (all three "
        "are one module)",
    ),
}

_SHAPES_OF = frozenset({"Shape", "Size"})
"""Operators that look at the shape of what they take and at nothing else."""

RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
REFUSE_CPU = "session.disable_cpu_ep_fallback"


def provider_of(name: str | Provider) -> Provider:
    """The provider of a short name ("cuda") or of ONNX Runtime's ("CUDAExecutionProvider"), in any case.

    Raises:
        ProviderError: there is none.
    """
    for provider, kind in KINDS.items():
        if name.lower() in (provider.value, kind.name.lower()):
            return provider
    raise ProviderError(f"there is no provider '{name}'; there are {', '.join(KINDS)}")


def import_runtime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - an extra (cpu or gpu); programs run without it
    except ImportError as error:
        raise MissingPackageError("ONNX Runtime is not installed: install afm-fx[cpu] or afm-fx[gpu]") from error
    return onnxruntime


def require_provider(runtime: Any, provider: Provider) -> ProviderKind:
    """What is known of a provider that this ONNX Runtime has.

    Raises:
        ProviderError: it does not have it; the message says which it has and what to install.
    """
    kind = KINDS[provider]
    available = runtime.get_available_providers()
    if kind.name not in available:
        there = [known.value for known in KINDS if KINDS[known].name in available]
        raise ProviderError(
            f"provider '{provider}' is not in the installed ONNX Runtime {runtime.__version__}, which has "
            f"{', '.join(there)}; {kind.install}"
        )
    return kind


def session_options(runtime: Any, threads: int) -> Any:
    """``SessionOptions`` of so many threads within an operator; operators run one after the other.

    Raises:
        UserError: fewer than 1 thread.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = check_threads(threads)
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


def open_session(
    file: Artifact,
    provider: str | Provider = Provider.CPU,
    threads: int = 1,
    *,
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """An ``InferenceSession`` that runs on one provider, and on nothing else but for shapes.

    Args:
        file: what :func:`afm_fx.runtime.artifact.read_artifact` found safe to open.
        provider_options: of the provider, as ONNX Runtime spells them.

    Raises:
        FileFormatError: ONNX Runtime cannot load it.
        MissingPackageError: ONNX Runtime is not installed.
        ProviderError: the provider is missing, cannot be started, or leaves operators to the CPU.
    """
    path, runtime, provider = file.path, import_runtime(), provider_of(provider)
    kind, options = require_provider(runtime, provider), session_options(runtime, threads)
    alone = provider is not Provider.CPU
    recorded = hasattr(runtime.InferenceSession, "get_provider_graph_assignment_info")
    if alone:
        options.add_session_config_entry(RECORD_ASSIGNMENT if recorded else REFUSE_CPU, "1")
    chosen = [(kind.name, dict(provider_options or {}))]
    try:
        session = runtime.InferenceSession(str(path), options, providers=chosen, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors derive from nothing common
        reason = " ".join(str(error).split())[:300]
        if provider is not Provider.CPU:
            raise ProviderError(f"provider '{provider}' cannot open '{path}': {reason}") from error
        raise FileFormatError(f"ONNX Runtime cannot load '{path}': {reason}") from error
    session.disable_fallback()
    if kind.name not in session.get_providers():
        raise ProviderError(
            f"provider '{provider}' could not be started, and ONNX Runtime would run '{path}' on "
            f"{', '.join(session.get_providers())}; {kind.install}"
        )
    if alone and recorded:
        _refuse_cpu_operators(session, file.model.graph, provider, path)
    return session


def _refuse_cpu_operators(session: Any, graph: onnx.GraphProto, provider: Provider, path: Path) -> None:
    parts = (part for part in session.get_provider_graph_assignment_info() if part.ep_name == KINDS[Provider.CPU].name)
    names = (node.name or node.op_type for part in parts for node in part.get_nodes())
    shapes = shape_operators(graph)
    left = [name for name in names if name not in shapes]
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise ProviderError(
            f"provider '{provider}' does not run all of '{path}': {len(left)} operators would run on the CPU "
            f"({shown}). Export with another form of them, or choose another provider"
        )


def shape_operators(graph: onnx.GraphProto) -> set[str]:
    """Names of the operators whose results depend on nothing but shapes and constants."""
    known = {each.name for each in graph.initializer}
    names = set()
    for node in graph.node:
        if node.op_type in _SHAPES_OF or all(name in known for name in node.input if name):
            known.update(node.output)
            names.add(node.name)
    return names


def check_threads(threads: int) -> int:
    """Refuses numbers of threads that are none.

    Raises:
        UserError: below 1.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1, got {threads}")
    return threads
