"""Runs a measurement in a process that has done nothing else, so that its memory is the measurement's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


def run_apart(measure: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """Calls a module's function in a fresh process, whose errors are raised here.

    Raises:
        BrokenProcessPool: that process was killed, most often for its memory.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *args, **kwargs).result()
