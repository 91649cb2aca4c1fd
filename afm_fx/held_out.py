"""Keeps some rows of every batch back, so that errors are measured on rows that no basis was made from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, CalibrationError, CalibrationWarning
from afm_fx.inputs import Inputs
from afm_fx.program import Program

EVERY = 5
"""One row of so many is kept back, until there are enough."""


class HoldOut:
    """Batches without the rows that are kept back; those are in :attr:`rows` once the batches have been gone through.

    Args:
        program: the captured model.
        batches: of what it takes.
        count: keep so many rows back at most.
    """

    def __init__(self, program: Program, batches: Iterable[Inputs], count: int) -> None:
        self._program, self._batches, self._count = program, batches, count
        self.rows: list[Inputs] = []
        self.first: Inputs | None = None
        self.kept = 0

    def __iter__(self) -> Iterator[Inputs]:
        self.rows, self.first, self.kept = [], None, 0
        seen = 0
        for inputs in self._batches:
            if self.first is None:
                self.first = inputs
            size = self._size(inputs) if self.kept < self._count else 0
            back = [row for row in range(size) if (seen + row) % EVERY == EVERY - 1][: self._count - self.kept]
            seen, self.kept = seen + size, self.kept + len(back)
            if not back:
                yield inputs
                continue
            self.rows.append(self._take(inputs, torch.tensor(back)))
            rest = sorted(set(range(size)) - set(back))
            if rest:
                yield self._take(inputs, torch.tensor(rest))

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
            leaves = pytree.tree_leaves(self._program.bind(inputs))
        except BatchError:
            return 0  # whoever takes the batch says what is wrong with it
        return next((int(leaf.shape[0]) for leaf, each in zip(leaves, self._program.batched, strict=True) if each), 0)

    def _take(self, inputs: Inputs, rows: Tensor) -> Inputs:
        args, kwargs = self._program.bind(inputs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        taken = [
            leaf[rows.to(leaf.device)] if batched else leaf
            for leaf, batched in zip(leaves, self._program.batched, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(taken, structure)
        if kwargs:
            return kwargs
        return args[0] if self._program.single_dict_argument else args
