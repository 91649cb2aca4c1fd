"""Where the columns of typed inputs come from, and how a batch of the original inputs becomes one of them.

The :class:`InputMapping` travels in the ONNX file's metadata under :data:`METADATA_KEY`, as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, id_outside
from afm_fx.io import from_json, to_json
from afm_fx.program.inputs import Inputs, align_inputs, normalize_inputs
from passes.sites import IdBound

METADATA_KEY = "afm_fx.inputs"
VERSION = 3
NO_TENSOR = ""
"""The number format of an input that is no tensor. Such an input is a part of the graph and in no file."""
_LARGEST_EXACT = 2.0**63


@dataclass(frozen=True)
class MappedInput:
    """An input of the program as it was captured, or of the typed one.

    Attributes:
        name: in the program and in an exported file.
        dtype: its number format, "int64" for ids; empty for what is no tensor.
        shape: of one row.
        source: the original input that its columns come from; its own name for an original.
        columns: the places of its columns among those of the source, row-major; None where it is the original input
            as it was.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    columns: tuple[int, ...] | None = None

    @property
    def holds_ids(self) -> bool:
        """Whether it was made of float columns that are ids."""
        return self.columns is not None and self.dtype == "int64"


@dataclass(frozen=True)
class InputMapping:
    """The original inputs and the typed ones made of them.

    Attributes:
        inputs: what the typed program takes, in order.
        bounds: the ids that tables take, of columns of these inputs where they are known.
    """

    originals: tuple[MappedInput, ...]
    inputs: tuple[MappedInput, ...]
    bounds: tuple[IdBound, ...] = ()

    def convert(self, tensors: Mapping[str, Tensor], *, check: bool = True) -> dict[str, Tensor]:
        """Makes the typed inputs of one batch.

        Args:
            tensors: the original inputs by name. Those that carry ids may come in any number format: float64 or int64
                keep ids beyond 2^24 apart.
            check: refuse what is no valid id; otherwise ids lose their fraction and nothing else is looked at.

        Returns:
            The typed inputs by name: ids as int64, features in the number format that the mapping gives them.

        Raises:
            BatchError: an input has another shape, or a column of ids holds a number that is not whole, or an id
                outside its table; row and column are named. A column that is read both as an id and as a feature may
                hold fractions: the id is the number without its fraction, as in the original.
        """
        wanted = {each.name: each for each in self.originals}
        features = {
            (each.source, column) for each in self.inputs if not each.holds_ids for column in each.columns or ()
        }
        converted = {}
        for each in self.inputs:
            given = tensors[each.source]
            if each.columns is None:
                converted[each.name] = given
                continue
            flat = _flat(given, wanted[each.source])
            picked = flat[:, list(each.columns)]
            if each.holds_ids:
                if check:
                    self._check_ids(picked, each, features)
                made = picked.to(torch.int64)
            else:
                made = picked.to(getattr(torch, each.dtype))
            converted[each.name] = made.reshape(made.shape[0], *each.shape).contiguous()
        return converted

    def _check_ids(self, picked: Tensor, typed: MappedInput, features: set[tuple[str, int]]) -> None:
        """Refuses the first number that is no id of its column."""
        columns = typed.columns or ()
        if picked.is_floating_point():
            whole = picked.trunc()
            strict = torch.tensor([(typed.source, each) not in features for each in columns], device=picked.device)
            bad = ~(whole.double().abs() < _LARGEST_EXACT) | ((whole != picked) & strict)
            if bool(bad.any()):
                row, place = bad.nonzero()[0].tolist()
                what = f"{picked[row, place].item()} of input '{typed.source}', column {columns[place]}"
                raise BatchError(f"row {row}: {what} is no whole number, but the column carries ids")
        for bound in (each for each in self.bounds if each.input == typed.name):
            field = f"input '{typed.source}', column {columns[bound.column]}"
            refuse_ids_outside(picked[:, bound.column], field, bound.table, bound.low, bound.high - 1)

    def id_columns(self, name: str) -> list[int]:
        """The columns of an original input that are ids."""
        typed = (each for each in self.inputs if each.holds_ids and each.source == name)
        return sorted(column for each in typed for column in each.columns or ())

    def id_ranges(self, name: str) -> dict[int, tuple[int, int]]:
        """The smallest and largest id of every column, where known, of a typed or an original input."""
        ranges: dict[int, tuple[int, int]] = {}
        sources = {
            (each.name, place): (each.source, column)
            for each in self.inputs
            for place, column in enumerate(each.columns or ())
        }
        for bound in self.bounds:
            typed = bound.input, bound.column
            for owner, column in (typed, sources.get(typed, typed)):
                if owner == name:
                    low, high = ranges.get(column, (bound.low, bound.high - 1))
                    ranges[column] = max(low, bound.low), min(high, bound.high - 1)
        return ranges

    def with_floats(self, dtype: torch.dtype | None) -> InputMapping:
        """The same mapping where every floating input is of another number format; None for the one that it has."""
        if dtype is None:
            return self
        name = str(dtype).removeprefix("torch.")

        def changed(given: MappedInput) -> MappedInput:
            floats = given.dtype != NO_TENSOR and getattr(torch, given.dtype).is_floating_point
            return replace(given, dtype=name) if floats else given

        originals, inputs = tuple(map(changed, self.originals)), tuple(map(changed, self.inputs))
        return replace(self, originals=originals, inputs=inputs)

    def tensors_only(self) -> InputMapping:
        """The mapping without inputs that are no tensors, which are in no file."""
        originals = tuple(value for value in self.originals if value.dtype != NO_TENSOR)
        inputs = tuple(value for value in self.inputs if value.dtype != NO_TENSOR)
        return replace(self, originals=originals, inputs=inputs)

    def to_json(self) -> str:
        """The mapping as it stands in an ONNX file's metadata."""
        return to_json(self, VERSION)

    @staticmethod
    def from_json(text: str) -> InputMapping:
        """Reads what :meth:`to_json` wrote.

        Raises:
            FileFormatError: it is something else.
        """
        return from_json(text, InputMapping, VERSION, f"the note on typed inputs ('{METADATA_KEY}')")


@dataclass(frozen=True)
class OriginalInputs:
    """What a typed program took before, and how that becomes what it takes now.

    Attributes:
        mapping: where the columns of the typed inputs come from.
        names: for every flattened input of the original, its name in the mapping.
        single_dict_argument: whether it takes one dict of features.
    """

    mapping: InputMapping
    names: tuple[str, ...]
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    single_dict_argument: bool

    def convert(self, inputs: Inputs, dtype: torch.dtype | None) -> dict[str, Any]:
        """The typed inputs of a batch, features in this number format; see :meth:`afm_fx.Program.convert_inputs`."""
        args, kwargs = normalize_inputs(inputs, self.single_dict_argument)
        bound = align_inputs(args, kwargs, self.example_args, self.example_kwargs)
        leaves = dict(zip(self.names, pytree.tree_leaves(bound), strict=True))
        return self.mapping.with_floats(dtype).convert(leaves)


def dtype_name(tensor: Tensor) -> str:
    """A tensor's number format, "float32" and the like."""
    return str(tensor.dtype).removeprefix("torch.")


def _flat(given: Any, wanted: MappedInput) -> Tensor:
    """[batch, columns] of an original input."""
    if not isinstance(given, Tensor):
        raise BatchError(f"input '{wanted.name}' is a {type(given).__name__}, the model takes a tensor")
    if given.dim() == 0 or tuple(given.shape[1:]) != wanted.shape:
        shown = ", ".join(("batch", *map(str, wanted.shape)))
        raise BatchError(f"input '{wanted.name}' has shape {list(given.shape)}, the model takes [{shown}]")
    return given.reshape(given.shape[0], -1)


def refuse_ids_outside(ids: Tensor, field: str, table: str, low: int, high: int) -> None:
    """Refuses ids [batch] of which one is outside its table, which takes ``low`` to ``high``.

    Raises:
        BatchError: with the first such row.
    """
    whole = ids.to(torch.int64)  # a comparison in float32 would round the ends of a large table
    outside = (whole < low) | (whole > high)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise id_outside(f"row {row}: id {int(whole[row])} of {field}", table, low, high)
