"""Exports a program once per batch size, every shape fixed, with one file of weights for all.

A runtime that knows every shape plans its memory and picks its kernels once. Each tensor of more than
:data:`INLINE_BYTES` lies in the shared file once, whatever the number of files that refer to it: equal bytes are found
by their digest, so that nothing depends on the names that the exporter gives to constants.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from afm_fx.io import refuse_existing_file, staged_outputs
from afm_fx.program import Program, require_program
from afm_fx.runtime.artifact import bucket_path, check_batch_sizes, existing_buckets, weights_path
from afm_fx.runtime.onnx_export import ExportReport, place_outside, staged_export

BATCH_SIZES = (1, 16, 64, 256, 1024)
INLINE_BYTES = 256
"""Tensors of at most so many bytes stay in the ONNX file: shapes and other small constants, which checks read there."""
ALIGNMENT = 64


def export_onnx_buckets(
    program: Program,
    path: str | os.PathLike[str],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    check: bool = True,
    force: bool = False,
    tolerance: float | None = None,
) -> tuple[ExportReport, ...]:
    """Writes one ONNX file per batch size, all shapes fixed, and one file of weights that all of them refer to.

    For ``model.onnx`` the files are ``model.batch_1.onnx``, ..., and ``model.weights.data``; they belong into one
    directory. Each is checked like any export, and all appear together or not at all. A batch of a size between is
    padded by whoever serves it.

    Args:
        program: what to export; its batch size must be free.
        path: gives the directory and the beginning of the files' names.
        force: replace existing files; those of other batch sizes go too, for their weights are replaced.
        check, tolerance: see :func:`afm_fx.export_onnx`.

    Returns:
        One report per batch size, in order; ``bytes`` of each includes the weights that all share.

    Raises:
        OutputExistsError: one of the files exists and ``force`` is not set.
        UserError: no batch sizes, or impossible ones; nothing can be written there.
        ExportError: see :func:`afm_fx.export_onnx`.
    """
    require_program(program, "afm_fx.export_onnx_buckets")
    target = Path(path)
    sizes = check_batch_sizes(batch_sizes)
    shared = weights_path(target)
    existing = [file for file in (shared, *existing_buckets(target)) if file.exists()]
    for file in existing:
        refuse_existing_file(file, force=force)
    with staged_outputs(target.parent, [file.name for file in existing]) as directory:
        weights = _SharedWeights(directory / shared.name)
        exports = [
            staged_export(
                program,
                bucket_path(directory / target.name, size),
                weights.save,
                batch_size=size,
                check=check,
                tolerance=tolerance,
            )
            for size in sizes
        ]
        size = weights.path.stat().st_size
    return tuple(
        replace(export, path=target.with_name(export.path.name), data_path=shared, bytes=export.bytes + size)
        for export in exports
    )


class _SharedWeights:
    """A file of tensors, each of which is in it once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, tuple[int, int]] = {}
        path.touch()

    def save(self, model: ir.Model, path: Path) -> None:
        """Saves a model beside the file, its larger tensors in the file."""
        place_outside(model, self._place)
        ir.save(model, path)

    def _place(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor | None:
        if tensor.nbytes <= INLINE_BYTES:
            return None
        array = tensor.numpy()
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        digest = hashlib.blake2b(content.data).digest()
        if digest not in self._places:
            with self.path.open("ab") as file:
                file.write(bytes(-file.tell() % ALIGNMENT))
                self._places[digest] = (file.tell(), content.nbytes)
                file.write(content.data)
        offset, length = self._places[digest]
        shape, folder = ir.Shape(array.shape), self.path.parent
        return ir.ExternalTensor(self.path.name, offset, length, tensor.dtype, shape=shape, name=name, base_dir=folder)
