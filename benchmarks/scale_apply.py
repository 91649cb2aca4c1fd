"""Measures what applying a plan to tables on disk takes, in memory and against a plain copy (--help)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, Python looks for imports beside this file only.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.scale_apply_command import app

    app()
