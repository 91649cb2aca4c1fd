"""What goes in and comes out of an ONNX file, and which of it carries the batch."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from afm_fx.recipe import FileRecipe


@dataclass(frozen=True)
class FileValue:
    """An input or output of a file.

    Attributes:
        name: its name.
        dtype: its number format, "float32" and the like.
        shape: its sizes; a name for a free one.
        batched: whether axis 0 is the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    batched: bool

    def line(self) -> str:
        """The value on one line."""
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


def described(
    model: onnx.ModelProto, recipe: FileRecipe | None
) -> tuple[int | None, tuple[FileValue, ...], tuple[FileValue, ...]]:
    """The fixed batch size, inputs and outputs of a file, with which of them carry the batch.

    The recipe of a file says so. Where there is none, a free axis 0 is the batch, and in a file without free axes the
    commonest first size of the inputs is.
    """
    constants = {each.name for each in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = list(model.graph.output)
    shapes = {value.name: _shape(value) for value in (*inputs, *outputs)}
    first = {name: shape[0] for name, shape in shapes.items() if shape}
    free = [name for name, size in first.items() if isinstance(size, str)]
    fixed = None if free else _commonest([first[value.name] for value in inputs if value.name in first])
    if recipe is not None and recipe.batched_inputs is not None and recipe.batched_outputs is not None:
        batched = {*recipe.batched_inputs, *recipe.batched_outputs}
        fixed = None if free else recipe.batch_size
    else:
        batched = {name for name, size in first.items() if (name in free if free else size == fixed)}
    made = [
        tuple(FileValue(each.name, _dtype(each), shapes[each.name], each.name in batched) for each in values)
        for values in (inputs, outputs)
    ]
    return fixed, made[0], made[1]


def _commonest(sizes: Sequence[int | str]) -> int | None:
    counted = collections.Counter(size for size in sizes if isinstance(size, int))
    return counted.most_common(1)[0][0] if counted else None


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    sizes = enumerate(value.type.tensor_type.shape.dim)
    return tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or f"free_{axis}" for axis, size in sizes
    )


def _dtype(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind).name) if kind else "not a tensor"
