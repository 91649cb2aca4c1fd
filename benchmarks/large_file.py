"""Measures how much memory exporting and serving a file of more than 2 GB takes (--help)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script, Python looks for imports beside this file only.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.large_file_command import app

    app()
