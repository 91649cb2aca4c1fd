"""What a recovery learns from: batches, with labels or without, and the teacher's logits on them.

Held-out batches are kept in memory and never trained on. Which ones they are, and the order of the others, follows from
the seed alone. Only a list can be gone through in another order; a loader or a function gives its own, which has to be
the same every time, for otherwise rows that were held out would be trained on.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.data import checked_labels, split_pair
from afm_fx.errors import BatchError, RecoveryError
from afm_fx.io import Group, rank_and_size
from afm_fx.program import Inputs, Program, as_logits, columns_of, expose_logits, probability_columns, rows_of

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
"""Batches that can be gone through many times: a list, a ``DataLoader``, or a function that starts over."""


@dataclass(frozen=True)
class RecoveryBatch:
    """One batch, or the part of it that one process works on.

    Attributes:
        inputs: as the original takes them.
        labels: [rows, columns], numbers from 0 to 1; None without labels.
        rows: its rows; 0 where there were fewer rows than processes, and the one row that is here does not count.
        share: of the whole batch's rows.
    """

    name: str
    inputs: Inputs
    labels: Tensor | None
    rows: int
    share: float = 1.0


LogitsOfBatch = Callable[[RecoveryBatch], Tensor]


class RecoveryData:
    """Training batches, of which a process sees its part of the rows, and held-out ones."""

    def __init__(
        self,
        program: Program,
        batches: Batches,
        *,
        labels: bool,
        held_out: float | Batches,
        seed: int,
        group: Group | None,
    ) -> None:
        self._rank, self._world = rank_and_size(group)
        self._program, self._batches, self._labelled, self._seed = program, batches, labels, seed
        self.keeps_batches = isinstance(batches, list | tuple)  # so that a name always means the same batch
        told = operator.length_hint(batches) if hasattr(batches, "__len__") else 0
        self._count = told or sum(1 for _ in _iterate(batches))
        self._held_out: dict[int, RecoveryBatch] = {}
        if isinstance(held_out, int | float):
            if self._count < 2:
                raise RecoveryError(f"a batch is held out and others train, so two are needed; there is {self._count}")
            chosen = set(self._shuffled(0)[: min(max(1, round(held_out * self._count)), self._count - 1)])
            chosen_batches = ((at, given) for at, given in enumerate(_iterate(batches)) if at in chosen)
            self._held_out = {at: self._checked(given, f"batch {at}") for at, given in chosen_batches}
            self.held_out = tuple(self._held_out.values())
        else:
            apart = enumerate(_iterate(held_out))
            self.held_out = tuple(self._checked(given, f"held-out batch {at}") for at, given in apart)
        self.steps = self._count - len(self._held_out)
        """Training batches per epoch."""
        if not (self.steps and self.held_out):
            raise RecoveryError("there are no batches to train on, or none held out (an iterator that was used up?)")

    def training(self, epoch: int) -> Iterator[RecoveryBatch]:
        """The training batches of an epoch (from 1)."""
        numbered: Iterable[tuple[int, Any]] = enumerate(_iterate(self._batches))
        if isinstance(self._batches, list | tuple):
            batches = self._batches
            numbered = ((at, batches[at]) for at in self._shuffled(epoch))
        seen = 0
        for at, given in numbered:
            seen += 1
            held_out = self._held_out.get(at)
            if held_out is None:
                yield self._part(given, f"batch {at}")
            elif not self.keeps_batches and not _same_rows(self._checked(given, held_out.name).inputs, held_out.inputs):
                raise RecoveryError(
                    f"batch {at} is held out, and holds other rows in epoch {epoch} than before. Give batches in a "
                    "fixed order (shuffle=False), a list, which is shuffled here, or batches of their own as held_out"
                )
        if seen != self._count:
            raise RecoveryError(f"there were {self._count} batches, in epoch {epoch} there are {seen}")

    def _shuffled(self, epoch: int) -> list[int]:
        """The positions in an order of the epoch's own: it needs no state to go on from a checkpoint."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch) % (1 << 63))
        order: list[int] = torch.randperm(self._count, generator=generator).tolist()
        return order

    def _checked(self, given: Any, name: str) -> RecoveryBatch:
        inputs, labels = split_pair(given, name) if self._labelled else (given, None)
        try:
            leaves = pytree.tree_leaves(self._program.bind(inputs))
        except BatchError as error:
            hint = "" if self._labelled else " (pairs of inputs and labels need labels=True)"
            raise BatchError(f"{name}: {error}{hint}") from error
        rows = rows_of(self._program, leaves)
        checked = checked_labels(labels, rows, name) if self._labelled else None
        return RecoveryBatch(name, inputs, checked, rows)

    def _part(self, given: Any, name: str) -> RecoveryBatch:
        """This process's rows of a batch."""
        batch = self._checked(given, name)
        if self._world == 1:
            return batch
        start, stop = (batch.rows * edge // self._world for edge in (self._rank, self._rank + 1))
        rows = slice(start, max(stop, start + 1)) if start < batch.rows else slice(0, 1)

        def cut(leaf: Any) -> Any:
            has_rows = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch.rows
            return leaf[rows] if has_rows else leaf

        inputs, labels = pytree.tree_map(cut, (batch.inputs, batch.labels))
        share = (stop - start) / batch.rows
        return RecoveryBatch(f"{name}, rows {start} to {stop}", inputs, labels, stop - start, share)


class TeacherLogits:
    """The teacher's logits; its outputs that are probabilities without a sigmoid are turned into logits.

    Args:
        first: a batch to tell the outputs' kinds from.
        keep: whether logits may be kept by the batch's name, because a name always means the same batch.
    """

    def __init__(self, teacher: Program, first: RecoveryBatch, *, keep: bool) -> None:
        self._program, _ = expose_logits(teacher)
        self._keep, self._kept = keep, dict[str, Tensor]()
        self._probabilities = probability_columns(teacher, self._program, first.inputs)

    def __call__(self, batch: RecoveryBatch) -> Tensor:
        """Logits [rows, columns] of a batch."""
        if batch.name in self._kept:
            return self._kept[batch.name]
        try:
            outputs = self._program.run(batch.inputs)
        except BatchError as error:
            place = str(error).removeprefix("batch 0, ")  # a program that is run once knows no number
            raise BatchError(f"{batch.name}: {place}") from error
        logits = as_logits(columns_of(outputs), self._probabilities)
        if not bool(logits.isfinite().all()):
            raise RecoveryError(f"{batch.name}: the teacher's output is NaN or infinite; leave such rows out")
        if self._keep:
            self._kept[batch.name] = logits
        return logits

    def same_of(self, program: Program) -> LogitsOfBatch:
        """What gives a program's logits, with gradients."""
        exposed, _ = expose_logits(program)

        def logits(batch: RecoveryBatch) -> Tensor:
            args, kwargs = program.bind(batch.inputs)
            columns, wanted = columns_of(exposed(*args, **kwargs)), len(self._probabilities)
            if columns.shape[1] != wanted:
                raise RecoveryError(f"the program outputs {columns.shape[1]} numbers a row, the teacher {wanted}")
            return as_logits(columns, self._probabilities)

        return logits


def _iterate(batches: Batches) -> Iterator[Any]:
    """The batches from the first one."""
    if isinstance(batches, Tensor | dict | str | Iterator) or not (callable(batches) or isinstance(batches, Iterable)):
        raise RecoveryError(
            f"batches are gone through once per epoch; give a list, a DataLoader, or a function that returns a new "
            f"iterator every time, not one {type(batches).__name__}"
        )
    return iter(batches() if callable(batches) else batches)


def _same_rows(one: Inputs, other: Inputs) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))
