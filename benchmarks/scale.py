"""Measures calibration by many processes: rows and bytes per second, memory, and bytes sent (--help)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, Python looks for imports beside this file only.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.scale_command import app

    app()
