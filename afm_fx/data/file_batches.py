"""Turns data files into batches of what a model takes.

Columns are matched to the model's inputs by name: the dict's key where the model takes a dict, else the name of the
argument. Columns that the model does not take (a label, say) are left out. A model with one tensor also takes a file
whose only array has another name, or whose columns, in order, are the tensor's columns.

Where columns of labels are named, batches are pairs of inputs and labels.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from afm_fx.data.data_files import DataFile
from afm_fx.data.parquet_files import Array, Columns, ParquetData
from afm_fx.errors import BatchError
from afm_fx.io import prefetched
from afm_fx.program import Inputs, Origin, Program, inputs_of


@dataclass(frozen=True)
class _Input:
    """One tensor that the model takes, and the columns of the file that fill it."""

    name: str
    example: Tensor
    columns: tuple[str, ...]


def match_columns(
    file: DataFile, tensors: Sequence[tuple[str, Tensor]], columns: Sequence[str] | None = None
) -> tuple[_Input, ...]:
    """Finds the columns for a model's tensors.

    Args:
        tensors: name and example of each tensor; axis 0 of the example is the batch.
        columns: names of the file's columns to use, in this order; None for all.

    Raises:
        BatchError: a tensor finds no column; it is named, and what the file has.
    """
    available = _available(file, columns)
    if len(tensors) == 1 and tensors[0][0] not in available:
        return (_Input(*tensors[0], _columns_of_one_tensor(file, *tensors[0], available)),)
    missing = [name for name, _ in tensors if name not in available]
    if missing:
        raise BatchError(
            f"'{file.path}' has no column for the model's input '{missing[0]}'{_nearest(missing[0], available)}; "
            f"missing {_listed(missing)}; the file has {_listed(available)}"
        )
    return tuple(_Input(name, example, (name,)) for name, example in tensors)


def read_tensors(
    file: DataFile, inputs: Sequence[_Input], size: int, start: int = 0, stop: int | None = None
) -> Iterator[list[Tensor]]:
    """Yields the tensors of the rows ``start`` to ``stop``, ``size`` at a time, in the order of the inputs.

    Raises:
        BatchError: values that the model cannot take, naming column and row.
        FileFormatError: the file is damaged.
    """
    wanted = list(dict.fromkeys(column for each in inputs for column in each.columns))
    for chunk in file.chunks(wanted, size, start, stop):
        yield [_tensor(file, each, chunk, start) for each in inputs]
        start += len(next(iter(chunk.values())))


@dataclass(frozen=True)
class FileBatches:
    """Batches read from a file or a folder; can be gone through any number of times.

    Parquet is read ahead in a thread of its own, a batch or two.

    Attributes:
        batch_size: rows a batch; the last batch may hold fewer.
        columns: names of the file's columns to use, in this order; None for all but the labels.
        labels: names of columns of labels, one per task.
        first: the first batch that is read; :meth:`share` sets it.
        rows: rows up to which the file is read, None for all of them.
    """

    file: DataFile
    program: Program
    batch_size: int = 4096
    columns: Sequence[str] | None = None
    labels: Sequence[str] = ()
    first: int = 0
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise BatchError(f"the batch size must be at least 1, got {self.batch_size}")
        self._inputs()  # a file that does not fit is told before any work

    def __len__(self) -> int:
        return max(math.ceil(self._stop / self.batch_size) - self.first, 0)

    def __iter__(self) -> Iterator[Inputs]:
        batches = self._filled(self._tensors(self.first * self.batch_size, self._stop))
        return prefetched(batches) if isinstance(self.file, ParquetData) else batches

    def origin(self, number: int) -> Origin:
        """The rows of the file that a batch holds, by its number in the file, and the columns of every input."""
        start = number * self.batch_size
        rows = torch.arange(start, min(start + self.batch_size, self._stop))
        names = [self.program.input_names[position] for position in _input_tensors(self.program)]
        columns = {name: each.columns for name, each in zip(names, self._inputs(), strict=False)}
        return Origin(f"'{self.file.path}'", rows, columns)

    def head(self, rows: int | None) -> FileBatches:
        """The batches of the first so many rows, None for all."""
        return self if rows is None else replace(self, rows=min(rows, self._stop))

    def share(self, number: int, of: int) -> FileBatches:
        """One of ``of`` shares, from 0: batches that follow on each other. Every batch is in exactly one share."""
        first, last = (self.first + len(self) * each // of for each in (number, number + 1))
        return replace(self, first=first, rows=min(last * self.batch_size, self._stop))

    def identity(self) -> str:
        """What tells these data from others: name, rows, rows a batch, and a digest of the first batch."""
        digest = hashlib.sha256()
        for tensors in self._tensors(0, min(self.batch_size, self._stop)):
            for tensor in tensors:
                digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        name = self.file.path.name
        return f"{name} ({self._stop:,} rows in batches of {self.batch_size:,}, {digest.hexdigest()[:8]})"

    @property
    def _stop(self) -> int:
        return self.file.rows if self.rows is None else self.rows

    def _filled(self, chunks: Iterator[list[Tensor]]) -> Iterator[Inputs]:
        positions = list(_input_tensors(self.program))
        filled = self.program.example_leaves
        for tensors in chunks:
            for position, tensor in zip(positions, tensors[: len(positions)], strict=True):
                filled[position] = tensor
            inputs = inputs_of(self.program, filled)
            yield (inputs, tensors[-1]) if self.labels else inputs

    def _tensors(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        return read_tensors(self.file, self._inputs(), self.batch_size, start, stop)

    def _inputs(self) -> tuple[_Input, ...]:
        # A model of one tensor takes all columns there are: a label must not become a feature.
        columns = (
            [name for name in self.file.names if name not in self.labels] if self.columns is None else self.columns
        )
        inputs = match_columns(self.file, list(_input_tensors(self.program).values()), columns)
        if not self.labels:
            return inputs
        return (*inputs, _Input("labels", torch.zeros((2, len(self.labels))), _available(self.file, self.labels)))


def _input_tensors(program: Program) -> dict[int, tuple[str, Tensor]]:
    """Name and example of every batched input tensor, by its position among the flattened inputs."""
    named = enumerate(zip(program.leaf_names(), program.example_leaves, program.batched, strict=True))
    return {at: (name, leaf) for at, (name, leaf, batched) in named if batched and isinstance(leaf, Tensor)}


def _available(file: DataFile, columns: Sequence[str] | None) -> tuple[str, ...]:
    if columns is None:
        return file.names
    unknown = [name for name in columns if name not in file.names]
    if unknown:
        raise BatchError(
            f"'{file.path}' has no column '{unknown[0]}'{_nearest(unknown[0], file.names)}; "
            f"it has {_listed(file.names)}"
        )
    return tuple(columns)


def _columns_of_one_tensor(file: DataFile, name: str, example: Tensor, available: tuple[str, ...]) -> tuple[str, ...]:
    width = example.shape[1] if example.dim() == 2 else None
    if len(available) == 1 or width == len(available):
        return available
    takes = f"{width} columns" if width is not None else f"shape [batch{_trailing(example)}]"
    raise BatchError(
        f"the model's input '{name}' takes {takes}, '{file.path}' has {len(available)}: {_listed(available)}. "
        "Name the columns to use, in the model's order (--columns)"
    )


def _tensor(file: DataFile, each: _Input, chunk: Columns, start: int) -> Tensor:
    named = [(f"'{file.path}', column '{column}'", chunk[column]) for column in each.columns]
    parts = [_converted(array, each.example.dtype, where, start) for where, array in named]
    if len(parts) == 1:
        return _shaped(parts[0], each, named[0][0]).to(each.example.device)
    for (where, _), part in zip(named, parts, strict=True):
        if part.dim() != 1:
            raise BatchError(
                f"{where} has shape [rows{_trailing(part)}]; where columns are stacked into the model's input "
                f"'{each.name}', each must hold one number a row"
            )
    return torch.stack(parts, dim=1).to(each.example.device)


def _converted(array: Array, dtype: torch.dtype, where: str, start: int) -> Tensor:
    """An array as a tensor of the model's dtype; refuses what would change a value's meaning."""
    if array.dtype.kind not in "biuf":
        kind = "text or Python objects" if array.dtype.kind in "OUST" else str(array.dtype)
        raise BatchError(f"{where} holds {kind}, the model takes numbers ({dtype}); encode it before")
    target = torch.empty(0, dtype=torch.float32 if dtype == torch.bfloat16 else dtype).numpy().dtype
    if target.kind != "f" and array.dtype.kind == "f":
        _refuse(~np.isfinite(array), array, f"{where}: the model takes {dtype}", start)
        _refuse(array != np.trunc(array), array, f"{where}: the model takes whole numbers ({dtype})", start)
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(target)
        if array.dtype.kind in "iu" or target.kind != "f":  # ids must survive; measurements may be rounded
            # A wrapped number compares equal once it is wrapped back, but not with its sign.
            changed = (result.astype(array.dtype) != array) | ((result < 0) != (array < 0))
            _refuse(changed, array, f"{where}: the model takes {dtype}, which cannot hold every value", start)
    return torch.from_numpy(np.ascontiguousarray(result)).to(dtype)


def _refuse(bad: Array, array: Array, message: str, start: int) -> None:
    if bad.any():
        place = tuple(int(index) for index in np.argwhere(bad)[0])
        raise BatchError(f"{message}; row {start + place[0]} holds {array[place]}")


def _shaped(tensor: Tensor, each: _Input, where: str) -> Tensor:
    wanted = tuple(each.example.shape[1:])
    if tuple(tensor.shape[1:]) == wanted:
        return tensor
    if wanted == (1,) and tensor.dim() == 1:
        return tensor.unsqueeze(1)
    if wanted == () and tuple(tensor.shape[1:]) == (1,):
        return tensor.squeeze(1)
    raise BatchError(
        f"{where} has shape [rows{_trailing(tensor)}], the model's input '{each.name}' takes "
        f"[batch{_trailing(each.example)}]"
    )


def _trailing(tensor: Tensor) -> str:
    return "".join(f", {size}" for size in tensor.shape[1:])


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _listed(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"'{name}'" for name in names[:shown]) + more
