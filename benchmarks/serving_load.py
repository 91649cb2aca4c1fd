"""Puts a Criteo-shaped DeepFM, dense and low-rank, under load with MLPerf LoadGen (--help)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, Python looks for imports beside this file only.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.serving_load_command import app

    app()
