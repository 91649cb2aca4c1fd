"""The packages of the extra ``report``, which only pages need."""

from __future__ import annotations

import importlib
from typing import Any

from afm_fx.errors import MissingPackageError

REPORT_PACKAGES = ("jinja2", "matplotlib", "pygraphviz")


def import_for_report(module: str) -> Any:
    """Imports what a page is made with.

    Raises:
        MissingPackageError: the extra ``report`` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"a page needs {module.partition('.')[0]}: pip install 'afm-fx[report]'") from error
