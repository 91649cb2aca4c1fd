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
from afm_fx.program import Program

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
"""Batches that can be gone through many times: a list, a ``DataLoader``, or a function that starts over."""


@dataclass(frozen=True)
class RecoveryBatch:
    """One batch.

    Attributes:
        name: what messages call it.
        position: place in the data, from 0.
        rows: number of rows.
        inputs: of the original.
        args: positional inputs of the program that is trained.
        kwargs: keyword inputs of it.
        labels: [rows, columns], numbers from 0 to 1; None without labels.
        weight: share of the whole batch's rows, where it is one process's part of a batch.
        whole_rows: rows of the whole batch.
    """

    name: str
    position: int
    rows: int
    inputs: Inputs
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None
    weight: float
    whole_rows: int


class RecoveryData:
    """Training batches, and held-out ones.

    Args:
        program: what takes the batches.
        batches: inputs, or pairs of inputs and labels.
        labels: whether they are pairs.
        held_out: share of the batches, or batches of their own.
        seed: of the choice and the order.
        part: number of this process and how many there are: of every training batch it gets its part of the rows.

    Raises:
        RecoveryError: the batches cannot be gone through twice, or are too few to hold any out.
        BatchError: a held-out batch does not fit the program.
    """

    def __init__(
        self,
        program: Program,
        batches: Batches,
        *,
        labels: bool,
        held_out: float | Batches,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._rank, self._world = part
        self._program, self._batches, self._labelled, self._seed = program, batches, labels, seed
        self._count = _count(batches, "batches")
        self._positions = self._chosen(held_out) if isinstance(held_out, int | float) else frozenset[int]()
        if isinstance(held_out, int | float):
            chosen = (self._bound(one, at) for at, one in enumerate(_iterate(batches)) if at in self._positions)
        else:
            _count(held_out, "held-out batches")
            chosen = (self._bound(one, at, "held-out batch") for at, one in enumerate(_iterate(held_out)))
        self.held_out: tuple[RecoveryBatch, ...] = tuple(chosen)

    @property
    def steps(self) -> int:
        """Training batches per epoch."""
        return self._count - len(self._positions)

    @property
    def keeps_batches(self) -> bool:
        """Whether a position always holds the same batch, so that what the teacher says about it can be kept."""
        return isinstance(self._batches, list | tuple)

    def training(self, epoch: int) -> Iterator[RecoveryBatch]:
        """The training batches of an epoch (from 1).

        Raises:
            RecoveryError: they are not those of the first time.
            BatchError: a batch does not fit the program.
        """
        if isinstance(self._batches, list | tuple):
            generator = torch.Generator().manual_seed(seed_of(self._seed, epoch))
            for position in torch.randperm(self._count, generator=generator).tolist():
                if position not in self._positions:
                    yield self._part(self._bound(self._batches[position], position))
            return
        kept = {batch.position: batch for batch in self.held_out} if self._positions else {}
        seen = 0
        for position, given in enumerate(_iterate(self._batches)):
            seen += 1
            if position not in self._positions:
                yield self._part(self._bound(given, position))
            elif not _same(self._bound(given, position), kept[position]):
                raise RecoveryError(
                    f"batch {position} is held out, and holds other rows in epoch {epoch} than before: held-out rows "
                    "would be trained on. Give batches in a fixed order (shuffle=False), a list, which is shuffled "
                    "here, or batches of their own as held_out"
                )
        if seen != self._count:
            raise RecoveryError(f"there were {self._count} batches, in epoch {epoch} there are {seen}")

    def _chosen(self, share: float) -> frozenset[int]:
        if self._count < 2:
            raise RecoveryError(
                f"there is {self._count} batch; at least one is held out, so give two or more, or other batches as "
                "held_out"
            )
        generator = torch.Generator().manual_seed(seed_of(self._seed, 0))
        size = min(max(1, round(share * self._count)), self._count - 1)
        return frozenset(torch.randperm(self._count, generator=generator)[:size].tolist())

    def _bound(self, given: Any, position: int, word: str = "batch") -> RecoveryBatch:
        name = f"{word} {position}"
        inputs, labels = _pair(given, name) if self._labelled else (given, None)
        program = self._program
        try:
            own = program.convert_inputs(inputs) if program.original_inputs is not None else inputs
            args, kwargs = program.bind(own)
        except BatchError as error:
            hint = "" if self._labelled else _hint(given)
            raise BatchError(f"{name}: {error}{hint}") from error
        rows = rows_of(program, args, kwargs)
        checked = None if labels is None else _checked_labels(labels, rows, name)
        return RecoveryBatch(name, position, rows, inputs, args, kwargs, checked, 1.0, rows)

    def _part(self, batch: RecoveryBatch) -> RecoveryBatch:
        """This process's rows of a batch; one row that weighs nothing where there are fewer rows than processes."""
        if self._world == 1:
            return batch
        start, stop = (batch.rows * edge // self._world for edge in (self._rank, self._rank + 1))
        weight = (stop - start) / batch.rows
        rows = slice(start, stop) if stop > start else slice(0, 1)
        leaves, structure = pytree.tree_flatten((batch.args, batch.kwargs))
        own = [leaf[rows] if each else leaf for leaf, each in zip(leaves, self._program.batched, strict=True)]
        args, kwargs = pytree.tree_unflatten(own, structure)
        inputs = pytree.tree_map(lambda leaf: leaf[rows] if _has_rows(leaf, batch.rows) else leaf, batch.inputs)
        labels = None if batch.labels is None else batch.labels[rows]
        name, count = f"{batch.name}, rows {start} to {stop}", max(stop - start, 1)
        return RecoveryBatch(name, batch.position, count, inputs, args, kwargs, labels, weight, batch.rows)


def _has_rows(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == rows


def seed_of(seed: int, epoch: int) -> int:
    """The seed of one epoch."""
    return (seed * 1_000_003 + epoch) % (1 << 63)


def _iterate(batches: Batches) -> Iterator[Any]:
    return iter(batches() if callable(batches) else batches)


def _count(batches: Batches, what: str) -> int:
    """The number of batches; goes through them where they do not tell."""
    if isinstance(batches, Tensor | dict | str):
        raise RecoveryError(f"{what} must be a list of batches, a DataLoader or the like; got one {_kind(batches)}")
    if not callable(batches):
        if not isinstance(batches, Iterable):
            raise RecoveryError(f"{what} cannot be gone through, they are a {_kind(batches)}")
        if isinstance(batches, Iterator):
            raise RecoveryError(
                f"{what} are gone through once per epoch, a {_kind(batches)} gives them only once; give a list, a "
                "DataLoader, or a function that returns a new iterator"
            )
    elif (first := _iterate(batches)) is _iterate(batches):
        raise RecoveryError(f"the function that gives {what} returns the same {_kind(first)} twice, not a new one")
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:
        count = sum(1 for _ in _iterate(batches))
    if count == 0:
        raise RecoveryError(f"there are no {what}; recovery needs data")
    return count


def _pair(given: Any, name: str) -> tuple[Inputs, Any]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        size = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise RecoveryError(f"{name}: with labels, batches are pairs (inputs, labels); got a {_kind(given)}{size}")
    return given[0], given[1]


def _hint(given: Any) -> str:
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    return "; where batches are pairs of inputs and labels, say labels=True" if is_pair else ""


def _checked_labels(given: Any, rows: int, name: str) -> Tensor:
    """Labels as [rows, columns] in float32."""
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecoveryError(f"{name}: the labels are a {_kind(given)}, no tensor: {error}") from error
    if labels.dim() not in (1, 2) or labels.shape[0] != rows:
        raise RecoveryError(
            f"{name}: the labels have shape {list(labels.shape)}, they must be [{rows}] or [{rows}, tasks]"
        )
    labels = labels.detach().to(torch.float32).reshape(rows, -1)
    wrong = ~((labels >= 0) & (labels <= 1))
    if bool(wrong.any()):
        row, column = (int(place) for place in wrong.nonzero()[0])
        raise RecoveryError(
            f"{name}, row {row}, task {column}: the label is {float(labels[row, column])}, it must lie between 0 and 1"
        )
    return labels


def _same(one: RecoveryBatch, other: RecoveryBatch) -> bool:
    left, right = (pytree.tree_leaves((each.args, each.kwargs)) for each in (one, other))
    return len(left) == len(right) and all(map(_equal, left, right))


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else bool(one == other)


def _kind(thing: Any) -> str:
    return type(thing).__name__
