"""A module that looks like ONNX Runtime with CUDA and computes on the CPU: it drives what is written for a GPU.

Sessions are real ones. Memory "on the device" is memory of the host that only ``OrtValue``'s own methods reach, as on a
GPU: an array that it was made of is copied, and what is in it is read with ``numpy``. Runs with an IO binding note the
CUDA graph that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


class DeviceValue:
    """An ``OrtValue`` on the device."""

    def __init__(self, value: Any) -> None:
        self.real = value

    @classmethod
    def ortvalue_from_numpy(cls, array: np.ndarray, device_type: str = "cpu", device_id: int = 0) -> DeviceValue:
        assert device_type == "cuda"
        own = np.array(array)
        value = cls(onnxruntime.OrtValue.ortvalue_from_numpy(own))
        value.device = (device_type, device_id)  # type: ignore[attr-defined]
        return value

    def update_inplace(self, array: np.ndarray) -> None:
        self.real.update_inplace(array)

    def numpy(self) -> np.ndarray:
        return self.real.numpy().copy()


class Binding:
    """An IO binding over device values."""

    def __init__(self, binding: Any) -> None:
        self.real = binding
        self.bound: dict[str, int] = {}

    def bind_ortvalue_input(self, name: str, value: DeviceValue) -> None:
        self.bound[name] = value.real.data_ptr()
        self.real.bind_ortvalue_input(name, value.real)

    def bind_ortvalue_output(self, name: str, value: DeviceValue) -> None:
        self.bound[name] = value.real.data_ptr()
        self.real.bind_ortvalue_output(name, value.real)


@dataclass
class FakeRuntime:
    """Stands in for the module ``onnxruntime``; it keeps what was asked of it.

    Attributes:
        starts: whether the provider starts; where not, sessions have the CPU alone, as with a CUDA that is missing.
        left_to_cpu: names of the operators that are given to the CPU.
        available: what ``get_available_providers`` tells.
    """

    starts: bool = True
    left_to_cpu: tuple[str, ...] = ()
    available: tuple[str, ...] = (CUDA, CPU)
    opened: list[Any] = field(default_factory=list)
    graphs: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.__version__ = onnxruntime.__version__
        self.SessionOptions, self.RunOptions = onnxruntime.SessionOptions, onnxruntime.RunOptions
        self.ExecutionMode = onnxruntime.ExecutionMode
        self.OrtValue = DeviceValue
        self.InferenceSession = self._session_class()

    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def _session_class(self) -> type:
        fake = self

        class InferenceSession:
            def __init__(self, path: str, options: Any, *, providers: list[Any], enable_fallback: int) -> None:
                assert enable_fallback == 0
                self.asked, self.options = providers, options
                self._real = onnxruntime.InferenceSession(path, providers=[CPU])
                fake.opened.append(self)

            def disable_fallback(self) -> None:
                self._real.disable_fallback()

            def get_providers(self) -> list[str]:
                return [CUDA, CPU] if fake.starts else [CPU]

            def get_inputs(self) -> Any:
                return self._real.get_inputs()

            def get_provider_graph_assignment_info(self) -> list[Any]:
                nodes = [SimpleNamespace(name=name, op_type="Gather", domain="") for name in fake.left_to_cpu]
                return [
                    SimpleNamespace(ep_name=CUDA, get_nodes=list),
                    SimpleNamespace(ep_name=CPU, get_nodes=lambda: nodes),
                ]

            def run(self, names: Any, feed: Any, options: Any = None) -> Any:
                fake.graphs.append(_graph(options))
                return self._real.run(names, feed)

            def io_binding(self) -> Binding:
                return Binding(self._real.io_binding())

            def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
                fake.graphs.append(_graph(options))
                self._real.run_with_iobinding(binding.real)

        return InferenceSession


def _graph(options: Any) -> str | None:
    return None if options is None else options.get_run_config_entry("gpu_graph_id")
