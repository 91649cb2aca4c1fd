"""deepctr-torch, imported quietly."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import ModuleType

from afm_fx.errors import UserError


def import_deepctr() -> ModuleType:
    """deepctr-torch without its look-up of newer versions, which it starts on import, in a thread that prints.

    Raises:
        UserError: it is not installed.
    """
    with _no_new_threads():
        try:
            importlib.import_module("deepctr_torch.inputs")
            importlib.import_module("deepctr_torch.models")
            return importlib.import_module("deepctr_torch")
        except ImportError as error:
            raise UserError(f"deepctr-torch is needed: pip install 'afm-fx[deepctr]' ({error})") from error


@contextlib.contextmanager
def _no_new_threads() -> Iterator[None]:
    start = threading.Thread.start
    threading.Thread.start = lambda _: None  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
