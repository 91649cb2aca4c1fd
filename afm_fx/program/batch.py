"""One batch bound to a program: its leaves in the order of the graph's placeholders, and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch.utils import _pytree as pytree

from afm_fx.program.inputs import Inputs

if TYPE_CHECKING:
    from afm_fx.program.program import Program


@dataclass(frozen=True)
class Origin:
    """Where the rows of a batch come from, as the user has them.

    Attributes:
        name: of the file, or of the batch that they are a part of.
        rows: [rows] int64, the number that each has there.
        columns: of a file, that fill each input, by its name in the graph.
    """

    name: str
    rows: torch.Tensor
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def part(self, rows: slice | torch.Tensor) -> Origin:
        """The origin of some of the rows."""
        return replace(self, rows=self.rows[rows])


@runtime_checkable
class KnowsOrigins(Protocol):
    """Batches that know where their rows come from."""

    def origin(self, number: int) -> Origin | None:
        """That of a batch that was yielded just now, by its number; None where it is the batch itself."""
        ...


@dataclass(frozen=True)
class Batch:
    """One checked batch.

    Attributes:
        number: position in the data, from 0.
        leaves: inputs in the order of the graph's placeholders.
        origin: where its rows come from, None where it is the user's own.
    """

    number: int
    rows: int
    leaves: list[Any]
    origin: Origin | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.origin is None:
            return f"batch {self.number}"
        first, last = int(self.origin.rows[0]), int(self.origin.rows[-1])
        return f"{self.origin.name}, rows {first:,} to {last:,}"

    def place(self, row: int) -> str:
        """What messages call one of its rows."""
        if self.origin is None:
            return f"{self.name}, row {row}"
        return f"{self.origin.name}, row {int(self.origin.rows[row])}"

    def column(self, name: str, column: int | None) -> str:
        """What messages call an input by its name in the graph, or one of its columns."""
        columns = () if self.origin is None else self.origin.columns.get(name, ())
        if len(columns) == 1 and column is None:
            return f"column '{columns[0]}'"
        if column is not None and len(columns) > 1 and column < len(columns):
            return f"column '{columns[column]}'"
        return f"input '{name}'" + ("" if column is None else f", column {column}")


def rows_of(program: Program, leaves: Sequence[Any]) -> int:
    """The number of rows of bound inputs; 1 where no input carries the batch."""
    return next((int(leaf.shape[0]) for leaf, batched in zip(leaves, program.batched, strict=True) if batched), 1)


def some_rows_of(program: Program, leaves: Sequence[Any], rows: slice | torch.Tensor) -> list[Any]:
    """Bound inputs with some of their rows only."""
    return [leaf[rows] if batched else leaf for leaf, batched in zip(leaves, program.batched, strict=True)]


def inputs_of(program: Program, leaves: Sequence[Any]) -> Inputs:
    """A batch as the program takes it, from its leaves in the order of the placeholders."""
    structure = pytree.tree_structure((program.example_args, program.example_kwargs))
    args, kwargs = pytree.tree_unflatten(leaves, structure)
    return tuple(args) or kwargs
