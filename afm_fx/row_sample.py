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

from afm_fx.batches import Batch
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
        _, structure = pytree.tree_flatten((program.example_args, program.example_kwargs))
        for start in range(0, self.rows, size):
            leaves = [self.columns[name][start : start + size] for name in names]
            args, kwargs = pytree.tree_unflatten(leaves, structure)
            yield kwargs or args

    def __add__(self, other: RowSample) -> RowSample:
        """The sample of both sets of rows, as large as the larger limit.

        Raises:
            CalibrationError: the rows have other columns.
        """
        if self.columns.keys() != other.columns.keys():
            raise CalibrationError("samples of rows of different models cannot be merged")
        keys = torch.cat([self.keys, other.keys])
        columns = {name: torch.cat([column, other.columns[name]]) for name, column in self.columns.items()}
        return _smallest(max(self.limit, other.limit), keys, columns)


class RowSampler:
    """Draws a sample of the rows of batches.

    Args:
        program: the captured model.
        limit: rows at most.
    """

    def __init__(self, program: Program, limit: int) -> None:
        tensors = [isinstance(leaf, Tensor) for leaf in _leaves(program.example_args, program.example_kwargs)]
        self._possible = limit > 0 and program.dynamic_batch and all(tensors) and all(program.batched)
        self._names, self._limit = program.input_names, limit
        self._generator = torch.Generator()
        self._sample: RowSample | None = None

    def add(self, batch: Batch, seed: int) -> None:
        """Adds the rows of a batch, with keys that follow from the seed; only rows that may be sampled are copied."""
        if not self._possible:
            return
        self._generator.manual_seed(seed)
        keys = torch.empty(batch.rows, dtype=torch.float64).exponential_(generator=self._generator)
        known = self._sample
        if known is not None and known.rows == self._limit:
            taken = (keys < known.keys[-1]).nonzero().flatten()
        else:
            taken = torch.arange(batch.rows)
        leaves = zip(self._names, _leaves(batch.args, batch.kwargs), strict=True)
        columns = {name: leaf.detach()[taken.to(leaf.device)].cpu() for name, leaf in leaves}
        drawn = _smallest(self._limit, keys[taken], columns)
        self._sample = drawn if known is None else known + drawn

    def result(self) -> RowSample | None:
        """The sample; None where the inputs have no rows that could be taken one by one."""
        return self._sample


def _smallest(limit: int, keys: Tensor, columns: Mapping[str, Tensor]) -> RowSample:
    """The rows of the smallest keys, in the order of their keys, so that it does not matter in which they came."""
    taken = keys.argsort()[:limit]
    return RowSample(limit, keys[taken], {name: column[taken] for name, column in columns.items()})


def _leaves(args: object, kwargs: object) -> list[Tensor]:
    return pytree.tree_leaves((args, kwargs))
