"""The version of this code, which files that it writes carry."""

from __future__ import annotations

__version__ = "0.1.0"
