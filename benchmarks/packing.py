"""Counts and times what packing does to the models of deepctr-torch (--help)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, Python looks for imports beside this file only.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.packing_command import app

    app()
