"""One batch bound to a program: its leaves in the order of the graph's placeholders, and its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from afm_fx.program.inputs import Inputs

if TYPE_CHECKING:
    from afm_fx.program.program import Program


@dataclass(frozen=True)
class Batch:
    """One checked batch.

    Attributes:
        number: position in the data, from 0.
        leaves: inputs in the order of the graph's placeholders.
    """

    number: int
    rows: int
    leaves: list[Any]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"batch {self.number}"


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
