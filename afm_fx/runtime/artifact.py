"""Artifacts: ONNX files as they tell of themselves, what goes in and comes out, and which of it carries the batch."""

from __future__ import annotations

import collections
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from afm_fx.errors import FileFormatError, UserError
from afm_fx.io import read_safe_onnx
from afm_fx.program import METADATA_KEY, FileRecipe, InputMapping, file_recipe

SUFFIX = ".onnx"
DIGITS = 16
"""Of a digest in a file's name."""


@dataclass(frozen=True)
class FileValue:
    """An input or output of a file.

    Attributes:
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
        return f"{self.name}: {self.kind}"

    @property
    def kind(self) -> str:
        """Number format and shape in words."""
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    def fits(self, tensor: Any, *, any_rows: bool = False) -> bool:
        """Whether a tensor has this number format and shape; with ``any_rows`` the batch may have another length."""
        if not isinstance(tensor, Tensor) or tensor.dtype is not getattr(torch, self.dtype, None):
            return False
        start = 1 if any_rows and self.batched else 0
        return len(self.shape) == tensor.ndim and all(
            not isinstance(size, int) or size == given
            for size, given in zip(self.shape[start:], tensor.shape[start:], strict=True)
        )


@dataclass(frozen=True)
class Artifact:
    """One file, looked at and not yet opened.

    Attributes:
        model: its graph, without external weights.
        batch_size: the one batch size that it takes, None for any.
        mapping: how typed inputs are made of the original's, None where there are none.
        recipe: how it came about, None where it does not say.
    """

    path: Path
    model: onnx.ModelProto
    inputs: tuple[FileValue, ...]
    outputs: tuple[FileValue, ...]
    batch_size: int | None
    mapping: InputMapping | None
    recipe: FileRecipe | None


def bucket_path(path: Path, batch_size: int) -> Path:
    """The file of one batch size: ``model.batch_16.onnx`` for ``model.onnx``."""
    return path.with_name(f"{path.stem}.batch_{batch_size}{path.suffix}")


def existing_buckets(path: Path) -> list[Path]:
    """The files of any batch size that are there."""
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.batch_*{path.suffix}"))


def external_data_path(path: Path, digest: str = "") -> Path:
    """The file of weights that are too large for the file itself: ``model.onnx.data`` for ``model.onnx``.

    Args:
        digest: of the weights, where a file of that name is in use: ``model.onnx.<digest>.data``.
    """
    return path.with_name(f"{path.name}.{digest}.data" if digest else f"{path.name}.data")


def existing_external_data(path: Path) -> list[Path]:
    """The files of such weights that are there."""
    named = path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * DIGITS}.data")
    return [each for each in (external_data_path(path), *sorted(named)) if each.exists()]


def weights_path(path: Path) -> Path:
    """The file of weights that all bucket files share: ``model.weights.data`` for ``model.onnx``."""
    return path.with_name(f"{path.stem}.weights.data")


def check_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Refuses batch sizes of which no files can be made.

    Raises:
        UserError: there are none, one is below 1, or one is given twice.
    """
    sizes = tuple(batch_sizes)
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise UserError(f"buckets are different batch sizes of at least 1, got {list(sizes)}")
    return sizes


def artifacts_at(path: Path) -> tuple[Artifact, ...]:
    """The files that a path stands for, by batch size: the file of that name, else its bucket files.

    Args:
        path: an ONNX file, or what :func:`afm_fx.export_onnx_buckets` was given, with or without ".onnx". Where both
            are there, the name with ".onnx" is the file and the one without stands for the buckets.

    Raises:
        FileFormatError: there are neither, one is damaged, or they do not belong together.
        UnsafeFileError: one names weights outside its folder.
    """
    if path.is_file():
        return (read_artifact(path),)
    stem = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    buckets = existing_buckets(stem)
    if not buckets:
        raise FileFormatError(
            f"there is no file '{path}', and no bucket files '{stem.stem}.batch_*{stem.suffix}' of it"
        )
    files = sorted(map(read_artifact, buckets), key=lambda file: file.batch_size or 0)
    for file in files:
        if file.batch_size is None:
            raise FileFormatError(f"'{file.path}' is no bucket file: its batch size is free")
    _check_alike(files)
    return tuple(files)


def read_artifact(path: Path) -> Artifact:
    """Looks at one file.

    Raises:
        FileFormatError: it is damaged, or its weights are.
        UnsafeFileError: it names weights outside its folder.
    """
    model = read_safe_onnx(path)
    recipe = file_recipe(metadata_of(model))
    batch_size, inputs, outputs = described(model, recipe)
    return Artifact(path, model, inputs, outputs, batch_size, mapping_of(model), recipe)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The notes of a file by key."""
    return {entry.key: entry.value for entry in model.metadata_props}


def mapping_of(model: onnx.ModelProto) -> InputMapping | None:
    """What a file with typed inputs says of the original's inputs, None for other files.

    Raises:
        FileFormatError: the note is damaged.
    """
    note = metadata_of(model).get(METADATA_KEY)
    return None if note is None else InputMapping.from_json(note)


def described(
    model: onnx.ModelProto, recipe: FileRecipe | None
) -> tuple[int | None, tuple[FileValue, ...], tuple[FileValue, ...]]:
    """The fixed batch size, inputs and outputs of a file, with which of them carry the batch.

    The recipe of a file says so. Where there is none, a free axis 0 is the batch, and in a file without free axes the
    commonest first size of the inputs is.
    """
    constants = {constant.name for constant in model.graph.initializer}
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

    def values(given: Sequence[onnx.ValueInfoProto]) -> tuple[FileValue, ...]:
        return tuple(FileValue(v.name, _dtype(v), shapes[v.name], v.name in batched) for v in given)

    return fixed, values(inputs), values(outputs)


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


def _check_alike(files: Sequence[Artifact]) -> None:
    """Bucket files of one export differ in the batch size and in nothing that a caller sees."""

    def seen(file: Artifact) -> Any:
        values = (*file.inputs, *file.outputs)
        plan = None if file.recipe is None else file.recipe.recipe.plan
        return plan, [(each.name, each.dtype, each.shape[each.batched :], each.batched) for each in values]

    for file in files[1:]:
        if seen(file) != seen(files[0]):
            raise FileFormatError(
                f"'{file.path.name}' and '{files[0].path.name}' are of different exports: their inputs, outputs or "
                "plans differ; export all buckets again"
            )
