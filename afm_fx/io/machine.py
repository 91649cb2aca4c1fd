"""The machine and the software that a measurement was taken on."""

from __future__ import annotations

import contextlib
import os
import platform
import re
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
        cores: logical cores that this process may use.
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
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages.append((name, metadata.version(name)))
    return Machine(
        # Python itself does not know the name that Linux gives the processor.
        cpu=next(iter(_matches(Path("/proc/cpuinfo"), r"^model name\s*: (.+)$")), "")
        or platform.processor()
        or platform.machine()
        or "unknown processor",
        cores=available_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=tuple(packages),
        gpu=_gpus(),
    )


def available_cores() -> int:
    """Logical cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> str | None:
    """What NVIDIA's driver says of its devices, whichever runtime uses them."""
    driver = Path("/proc/driver/nvidia")
    names = [name for path in sorted(driver.glob("gpus/*/information")) for name in _matches(path, r"^Model:\s*(.+)$")]
    version = next(iter(_matches(driver / "version", r"^NVRM.*?\s(\d+\.[\d.]+)\s")), "unknown")
    return f"{' + '.join(names)}, driver {version}" if names else None


def _matches(path: Path, pattern: str) -> list[str]:
    """What the pattern's group matches in a file, nothing where there is no such file."""
    return re.findall(pattern, path.read_text(errors="replace"), re.MULTILINE) if path.is_file() else []
