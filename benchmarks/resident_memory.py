"""Resident memory of this process; the package measures with the same."""

from afm_fx.resident_memory import mapped_bytes, peak_bytes, reset_peak, resident_bytes

__all__ = ["mapped_bytes", "peak_bytes", "reset_peak", "resident_bytes"]
