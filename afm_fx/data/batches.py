"""Batches as users hold them: any iterable of what the model takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, CalibrationError
from afm_fx.program import Batch, Inputs, KnowsOrigins, Origin, Program, rows_of, some_rows_of


def checked_batches(
    program: Program, batches: Iterable[Inputs], max_rows: int | None = None, *, first: int = 0
) -> Iterator[Batch]:
    """Yields batches that fit the program, numbered from ``first``.

    The last one is cut so that there are at most ``max_rows`` rows in all.

    Raises:
        BatchError: a batch does not fit; the message carries its number.
        CalibrationError: ``max_rows`` is not positive, or the batches are not iterable.
    """
    if max_rows is not None and max_rows < 1:
        raise CalibrationError(f"max_rows must be at least 1, got {max_rows}")
    if isinstance(batches, torch.Tensor | dict | str):
        raise CalibrationError(
            f"batches must be an iterable of batches (a list, a DataLoader), got one {type(batches).__name__}"
        )
    seen = 0
    for number, inputs in enumerate(batches, first):
        origin = batches.origin(number) if isinstance(batches, KnowsOrigins) else None
        batch = _checked(program, inputs, number, origin)
        if max_rows is not None and seen + batch.rows > max_rows and program.dynamic_batch:
            rows = max_rows - seen
            origin = None if origin is None else origin.part(slice(rows))
            batch = replace(batch, rows=rows, leaves=some_rows_of(program, batch.leaves, slice(rows)), origin=origin)
        yield batch
        seen += batch.rows
        if max_rows is not None and seen >= max_rows:
            return


def _checked(program: Program, inputs: Inputs, number: int, origin: Origin | None) -> Batch:
    try:
        leaves = pytree.tree_leaves(program.bind(inputs))
    except BatchError as error:
        raise BatchError(f"batch {number}: {error}") from error
    return Batch(number, rows_of(program, leaves), leaves, origin)


def peek(batches: Iterable[Inputs]) -> tuple[Inputs, Iterable[Inputs]]:
    """The first batch, and an iterable that still begins with it.

    Raises:
        CalibrationError: there are no batches.
    """
    iterator = iter(batches)
    try:
        first = next(iterator)
    except StopIteration:
        raise CalibrationError("there are no calibration batches") from None
    return first, batches if isinstance(batches, list | tuple) else itertools.chain([first], iterator)
