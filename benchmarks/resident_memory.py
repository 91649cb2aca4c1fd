"""Resident memory of this process; the package measures with the same."""

from afm_fx.resident_memory import peak_bytes, reset_peak, resident_bytes

__all__ = ["peak_bytes", "reset_peak", "resident_bytes"]
