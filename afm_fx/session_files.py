"""What a session serves: one ONNX file, or one file per batch size, and what goes in and comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from afm_fx.errors import FileFormatError
from afm_fx.file_values import FileValue, described
from afm_fx.input_mapping import InputMapping
from afm_fx.onnx_buckets import existing_buckets
from afm_fx.onnx_file import read_safe_onnx
from afm_fx.onnx_inputs import mapping_of
from afm_fx.recipe import FileRecipe, file_recipe

SUFFIX = ".onnx"


@dataclass(frozen=True)
class SessionFile:
    """One file, looked at and not yet opened.

    Attributes:
        path: the file.
        model: its graph, without external weights.
        inputs: what it takes, in order.
        outputs: what it gives, in order.
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


def session_files(path: Path) -> tuple[SessionFile, ...]:
    """The files that a path stands for, by batch size: the file of that name, else its bucket files.

    Args:
        path: an ONNX file, or what :func:`afm_fx.export_onnx_buckets` was given, with or without ".onnx". Where both
            are there, the name with ".onnx" is the file and the one without stands for the buckets.

    Raises:
        FileFormatError: there are neither, one is damaged, or they do not belong together.
        UnsafeFileError: one names weights outside its folder.
    """
    if path.is_file():
        return (session_file(path),)
    stem = path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)
    buckets = existing_buckets(stem)
    if not buckets:
        raise FileFormatError(
            f"there is no file '{path}', and no bucket files '{stem.stem}.batch_*{stem.suffix}' of it"
        )
    files = sorted((session_file(each) for each in buckets), key=lambda file: file.batch_size or 0)
    for file in files:
        if file.batch_size is None:
            raise FileFormatError(f"'{file.path}' is no bucket file: its batch size is free")
    _check_alike(files)
    return tuple(files)


def session_file(path: Path) -> SessionFile:
    """Looks at one file.

    Raises:
        FileFormatError: it is damaged, or its weights are.
        UnsafeFileError: it names weights outside its folder.
    """
    model = read_safe_onnx(path)
    recipe = file_recipe({entry.key: entry.value for entry in model.metadata_props})
    batch_size, inputs, outputs = described(model, recipe)
    return SessionFile(path, model, inputs, outputs, batch_size, mapping_of(model), recipe)


def _check_alike(files: Sequence[SessionFile]) -> None:
    """Bucket files of one export differ in the batch size and in nothing that a caller sees."""

    def seen(file: SessionFile) -> Any:
        values = (*file.inputs, *file.outputs)
        plan = None if file.recipe is None else file.recipe.recipe.plan
        return plan, [(each.name, each.dtype, each.shape[each.batched :], each.batched) for each in values]

    for file in files[1:]:
        if seen(file) != seen(files[0]):
            raise FileFormatError(
                f"'{file.path.name}' and '{files[0].path.name}' are of different exports: their inputs, outputs or "
                "plans differ; export all buckets again"
            )
