"""The machine and the software that a measurement was taken on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

MEASURED_PACKAGES = (
    "torch", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnx", "numpy", "mlcommons-loadgen",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where a measurement was taken.

    Attributes:
        cpu: the processor's name.
        cores: logical cores that this process may use.
        system: operating system and architecture.
        python: version of the interpreter.
        packages: (name, version) of every installed package that bears on the measurement.
        gpu: name and driver of every NVIDIA device, None where there is none.
    """

    cpu: str
    cores: int
    system: str
    python: str
    packages: tuple[tuple[str, str], ...]
    gpu: str | None = None

    def line(self) -> str:
        """The machine on one line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.packages)
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        gpu = "" if self.gpu is None else f"{self.gpu}, "
        return f"{self.cpu}, {cores}, {gpu}{self.system}, Python {self.python}, {versions}"


def this_machine() -> Machine:
    """Describes the machine that this process runs on."""
    packages = []
    for name in MEASURED_PACKAGES:
        try:
            packages.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=_cpu_name(),
        cores=available_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=tuple(packages),
        gpu=_gpu_name(),
    )


def available_cores() -> int:
    """Logical cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """The name that Linux gives the processor, else what Python knows."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _gpu_name(driver: Path = Path("/proc/driver/nvidia")) -> str | None:
    """What NVIDIA's driver says of its devices, whichever runtime uses them."""
    names = []
    for information in sorted(driver.glob("gpus/*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names.append(value.strip())
    if not names:
        return None
    version = driver / "version"
    words = version.read_text(encoding="utf-8", errors="replace").split() if version.is_file() else []
    release = next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
    return f"{' + '.join(names)}, driver {release}"
