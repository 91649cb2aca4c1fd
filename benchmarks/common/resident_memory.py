"""Resident memory of this process, as Linux accounts for it."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes resident now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Largest number of bytes resident since the process began or :func:`reset_peak` was called."""
    return _status("VmHWM")


def mapped_bytes() -> int:
    """Bytes resident now that are pages of mapped files."""
    return _status("RssFile")


def reset_peak() -> None:
    """Starts a new peak at what is resident now."""
    _CLEAR.write_text("5", encoding="ascii")


def _status(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} holds no {field}: resident memory is read on Linux only")
