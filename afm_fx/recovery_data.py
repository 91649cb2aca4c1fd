"""The batches of a recovery: gone through once per epoch, some of them held out, with labels or without.

Held-out batches are kept in memory and never trained on. Which ones they are, and the order of the others, follows from
the seed alone. Only a list can be gone through in another order; a loader or a function gives its own, which has to be
the same every time (this is checked), for otherwise rows that were held out would be trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.batches import rows_of
from afm_fx.errors import BatchError, RecoveryError
from afm_fx.inputs import Inputs
from afm_fx.labels import checked_labels, split_pair
from afm_fx.process_groups import Group, rank_and_size
from afm_fx.program import Program

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
"""Batches that can be gone through many times: a list, a ``DataLoader``, or a function that starts over."""


@dataclass(frozen=True)
class RecoveryBatch:
    """One batch, or the part of it that one process works on.

    Attributes:
        args: positional inputs of the program that is trained.
        labels: [rows, columns], numbers from 0 to 1; None without labels.
        rows: its rows; 0 where there were fewer rows than processes, and the one row that is here does not count.
    """

    name: str
    inputs: Inputs
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None
    rows: int
    share: float = 1.0


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
        self._count = _count(batches, "batches")
        self._held_out: dict[int, RecoveryBatch] = {}
        if not isinstance(held_out, int | float):
            _count(held_out, "held-out batches")
            self.held_out = tuple(
                self._checked(given, f"held-out batch {at}") for at, given in enumerate(_iterate(held_out))
            )
            return
        if self._count < 2:
            raise RecoveryError(
                f"there is {self._count} batch; at least one is held out, so give two or more, or other batches as "
                "held_out"
            )
        size = min(max(1, round(held_out * self._count)), self._count - 1)
        chosen = frozenset(self._shuffled(0)[:size])
        numbered = (pair for pair in enumerate(_iterate(batches)) if pair[0] in chosen)
        self._held_out = {at: self._checked(given, f"batch {at}") for at, given in numbered}
        self.held_out = tuple(self._held_out.values())

    @property
    def steps(self) -> int:
        """Training batches per epoch."""
        return self._count - len(self._held_out)

    @property
    def keeps_batches(self) -> bool:
        """Whether a name always means the same batch, so that what the teacher says about it can be kept."""
        return isinstance(self._batches, list | tuple)

    def training(self, epoch: int) -> Iterator[RecoveryBatch]:
        """The training batches of an epoch (from 1)."""
        numbered: Iterable[tuple[int, Any]]
        if isinstance(self._batches, list | tuple):
            numbered = ((at, self._batches[at]) for at in self._shuffled(epoch))
        else:
            numbered = enumerate(_iterate(self._batches))
        seen = 0
        for at, given in numbered:
            seen += 1
            held_out = self._held_out.get(at)
            if held_out is None:
                yield self._part(given, f"batch {at}")
            elif not self.keeps_batches and not _same_rows(self._checked(given, held_out.name), held_out):
                raise RecoveryError(
                    f"batch {at} is held out, and holds other rows in epoch {epoch} than before: held-out rows "
                    "would be trained on. Give batches in a fixed order (shuffle=False), a list, which is shuffled "
                    "here, or batches of their own as held_out"
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
            args, kwargs = self._bound(inputs)
        except BatchError as error:
            is_pair = not self._labelled and isinstance(given, tuple | list) and len(given) == 2
            hint = "; where batches are pairs of inputs and labels, say labels=True" if is_pair else ""
            raise BatchError(f"{name}: {error}{hint}") from error
        rows = rows_of(self._program, pytree.tree_leaves((args, kwargs)))
        checked = checked_labels(labels, rows, name) if self._labelled else None
        return RecoveryBatch(name, inputs, args, kwargs, checked, rows)

    def _bound(self, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        program = self._program
        return program.bind(inputs if program.original_inputs is None else program.convert_inputs(inputs))

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
        args, kwargs = self._bound(inputs)
        name = f"{name}, rows {start} to {stop}"
        return RecoveryBatch(name, inputs, args, kwargs, labels, stop - start, (stop - start) / batch.rows)


def _iterate(batches: Batches) -> Iterator[Any]:
    return iter(batches() if callable(batches) else batches)


def _count(batches: Batches, what: str) -> int:
    """The number of batches; goes through them where they do not tell."""
    if isinstance(batches, Tensor | dict | str) or not (callable(batches) or isinstance(batches, Iterable)):
        raise RecoveryError(f"{what} must be a list of batches, a DataLoader or the like; got one {_kind(batches)}")
    if (first := _iterate(batches)) is _iterate(batches):
        raise RecoveryError(
            f"{what} are gone through once per epoch, and this {_kind(first)} gives them only once; give a list, a "
            "DataLoader, or a function that returns a new iterator every time"
        )
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:
        count = sum(1 for _ in _iterate(batches))
    if count == 0:
        raise RecoveryError(f"there are no {what}; recovery needs data")
    return count


def _same_rows(one: RecoveryBatch, other: RecoveryBatch) -> bool:
    pairs = zip(*(pytree.tree_leaves((batch.args, batch.kwargs)) for batch in (one, other)), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in pairs)


def _kind(thing: Any) -> str:
    return type(thing).__name__
