"""Keeps some rows of every batch back, so that errors are measured on rows that no basis was made from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, CalibrationError, CalibrationWarning
from afm_fx.program import Inputs, KnowsOrigins, Origin, Program, inputs_of, rows_of, some_rows_of

EVERY = 5
"""One row of so many is kept back, until there are enough."""


class LocatedBatches(list[Inputs]):
    """Batches that were made of rows of others, with what they were made of."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: list[Origin] = []

    def origin(self, number: int) -> Origin:
        """Where a batch's rows come from."""
        return self.origins[number]


class HoldOut:
    """Batches without the rows that are kept back; those are in :attr:`rows` once the batches have been gone through.

    Args:
        count: keep so many rows back at most.
    """

    def __init__(self, program: Program, batches: Iterable[Inputs], count: int) -> None:
        self._program, self._batches, self._count = program, batches, count
        self.rows = LocatedBatches()
        self._origin: Origin | None = None
        self.first: Inputs | None = None
        self.kept = 0

    def __iter__(self) -> Iterator[Inputs]:
        self.rows, self.first, self.kept = LocatedBatches(), None, 0
        seen = 0
        for number, inputs in enumerate(self._batches):
            origin = self._batches.origin(number) if isinstance(self._batches, KnowsOrigins) else None
            self._origin = origin
            if self.first is None:
                self.first = inputs
            size = self._size(inputs) if self.kept < self._count else 0
            rows = torch.arange(size)
            back = rows[(seen + rows) % EVERY == EVERY - 1][: self._count - self.kept]
            seen, self.kept = seen + size, self.kept + len(back)
            if not len(back):
                yield inputs
                continue
            whole = origin or Origin(f"batch {number}", rows)
            self.rows.append(self._take(inputs, back))
            self.rows.origins.append(whole.part(back))
            rest = rows[~torch.isin(rows, back)]
            self._origin = whole.part(rest)
            if len(rest):
                yield self._take(inputs, rest)

    def origin(self, number: int) -> Origin | None:  # noqa: ARG002 - the batch yielded last, whatever its number
        """Where the rows of the batch that was yielded last come from."""
        return self._origin

    def some_rows(self) -> list[Inputs]:
        """The rows that are kept back, read no further than there are enough; the first batch where there are none.

        Warns:
            CalibrationWarning: there are none, so that errors are measured on rows that the basis is made from.

        Raises:
            CalibrationError: there are no batches.
        """
        if self.first is None:
            for _ in self:
                if self.kept >= self._count:
                    break
        if self.first is None:
            raise CalibrationError("there are no batches to measure logit errors on")
        if not self.rows:
            message = "too few rows to keep any back: logit errors are measured on calibration rows"
            warnings.warn(message, CalibrationWarning, stacklevel=4)
        return self.rows or [self.first]

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def _size(self, inputs: Inputs) -> int:
        """The number of rows of a batch that can be cut; 0 for others, and for one that does not fit."""
        if not self._program.dynamic_batch:
            return 0
        try:
            return rows_of(self._program, self._leaves(inputs))
        except BatchError:
            return 0  # whoever takes the batch says what is wrong with it

    def _take(self, inputs: Inputs, rows: Tensor) -> Inputs:
        return inputs_of(self._program, some_rows_of(self._program, self._leaves(inputs), rows))

    def _leaves(self, inputs: Inputs) -> list[Any]:
        return pytree.tree_leaves(self._program.bind(inputs))
