"""A uniform sample of the rows that calibration saw, of bounded size, mergeable and decayable.

Every row draws a key ``e / w`` with ``e`` from the exponential distribution and ``w`` its weight, 1 when it is seen;
the sample is the rows of the smallest keys (Efraimidis and Spirakis, 2006). Samples merge by keeping the smallest keys
of both, and rows of weight ``w`` become rows of weight ``f w`` by dividing their keys by ``f``: the result is, in
distribution, the sample that would have been drawn from all rows at those weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.batches import Batch, inputs_of
from afm_fx.errors import CalibrationError
from afm_fx.inputs import Inputs
from afm_fx.program import Program


@dataclass(frozen=True)
class RowSample:
    """Some rows of what the model takes.

    Attributes:
        limit: rows at most.
        keys: [k] float64, ``k <= limit``, ascending.
        columns: by name of the flattened input, [k, ...].
    """

    limit: int
    keys: Tensor
    columns: Mapping[str, Tensor]

    @property
    def rows(self) -> int:
        """Number k of rows."""
        return int(self.keys.shape[0])

    def decayed(self, factor: float) -> RowSample:
        """The sample with every row's weight multiplied."""
        return RowSample(self.limit, self.keys / factor, self.columns)

    def up_to(self, key: float) -> RowSample:
        """The rows whose keys are not above ``key``."""
        count = int((self.keys <= key).sum())
        return RowSample(self.limit, self.keys[:count], {name: each[:count] for name, each in self.columns.items()})

    def batches(self, program: Program, size: int) -> Iterator[Inputs]:
        """The rows as batches of a program's inputs.

        Raises:
            CalibrationError: the program takes other inputs.
        """
        names = program.input_names
        if set(names) != set(self.columns):
            raise CalibrationError(
                f"the saved rows are of another model: they have the inputs {sorted(self.columns)}, "
                f"the program takes {sorted(names)}"
            )
        for start in range(0, self.rows, size):
            leaves = [self.columns[name][start : start + size] for name in names]
            yield inputs_of(program, leaves)

    def __add__(self, other: RowSample) -> RowSample:
        """The sample of both sets of rows, as large as the larger limit.

        Raises:
            CalibrationError: the rows have other columns.
        """
        if self.columns.keys() != other.columns.keys():
            raise CalibrationError("samples of rows of different models cannot be merged")
        limit = max(self.limit, other.limit)
        keys = torch.cat([self.keys, other.keys])
        taken = keys.argsort()[:limit]
        columns = {name: torch.cat([column, other.columns[name]])[taken] for name, column in self.columns.items()}
        return RowSample(limit, keys[taken], columns)


def sampled(program: Program, batch: Batch, known: RowSample | None, limit: int, seed: int) -> RowSample | None:
    """A sample with the rows of one more batch, whose keys follow from the seed; only rows that are taken are copied.

    None where nothing is asked for, or the inputs have no rows that could be taken one by one.
    """
    leaves = pytree.tree_leaves((batch.args, batch.kwargs))
    by_rows = program.dynamic_batch and all(program.batched) and all(isinstance(leaf, Tensor) for leaf in leaves)
    if limit == 0 or not by_rows:
        return None
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty(batch.rows, dtype=torch.float64).exponential_(generator=generator)
    taken = keys.argsort()[:limit]
    if known is not None and known.rows == limit:
        taken = taken[keys[taken] < known.keys[-1]]
    columns = {
        name: leaf.detach()[taken.to(leaf.device)].cpu() for name, leaf in zip(program.input_names, leaves, strict=True)
    }
    drawn = RowSample(limit, keys[taken], columns)
    return drawn if known is None else known + drawn
