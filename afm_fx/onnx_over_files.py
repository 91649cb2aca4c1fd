"""ONNX files whose weights are the files of a table folder: nothing is copied a second time.

A safetensors file is a header and raw little-endian rows, which is what ONNX calls external data: a file, an offset and
a length. So the ONNX file beside the tables names their files, and a runtime maps the rows where they lie.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from afm_fx.absent_tables import storage_of
from afm_fx.apply_files import INDEX, AppliedFiles
from afm_fx.checkpoints import open_checkpoint
from afm_fx.errors import UserError
from afm_fx.onnx_export import ExportReport, place_outside, staged_export
from afm_fx.output_directory import move_into_place, refuse_existing_file

NAME = "low_rank.onnx"
INLINE_BYTES = 1024
"""Smaller tensors that are no tables stay in the ONNX file, where shape inference can see them."""


def export_onnx_over_files(
    applied: AppliedFiles,
    name: str = NAME,
    *,
    batch_size: int | None = None,
    check: bool = True,
    force: bool = False,
    tolerance: float | None = None,
) -> ExportReport:
    """Writes a low-rank program as an ONNX file that refers to the tables' files, beside them.

    The program is exported as it is, not packed: packing would stack the tables into another one. The ONNX file holds
    for the folder's present state; after the next change, export again.

    Args:
        applied: what :func:`afm_fx.apply_to_files` made.
        name: of the ONNX file, in the folder of the tables.
        batch_size, check, force, tolerance: see :func:`afm_fx.export_onnx`.

    Raises:
        OutputExistsError: the file exists and ``force`` is not set.
        UserError: the name is one of another folder.
        ExportError: see :func:`afm_fx.export_onnx`.
    """
    target = applied.folder / name
    if target.name != name:
        raise UserError(f"'{name}' is no name of a file: the ONNX file stands beside the tables that it refers to")
    stored = open_checkpoint(applied.folder / INDEX)
    state = applied.program.graph_module.state_dict()
    tables = {table.name for table in applied.tables}
    outside = {name: each for name, each in stored.items() if name in tables or each.bytes > INLINE_BYTES}

    def place(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor | None:
        raw = getattr(tensor, "raw", None)
        if name not in outside or not isinstance(raw, Tensor) or storage_of(raw) != storage_of(state[name]):
            return None  # no tensor of the folder, or another one that the exporter made of this name
        chunk, size, shape = outside[name].chunks[0], outside[name].bytes, ir.Shape(outside[name].shape)
        return ir.ExternalTensor(
            chunk.path.name, chunk.offset, size, tensor.dtype, shape=shape, name=name, base_dir=applied.folder
        )

    def save(model: ir.Model, path: Path) -> None:
        place_outside(model, place)
        ir.save(model, path)

    refuse_existing_file(target, force=force)
    # Not in a folder of its own: what it is checked with reads the tables' files beside it.
    staged = target.with_name(f".{name}.new")
    try:
        report = staged_export(applied.program, staged, save, batch_size=batch_size, check=check, tolerance=tolerance)
        move_into_place(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    return replace(report, path=target)
