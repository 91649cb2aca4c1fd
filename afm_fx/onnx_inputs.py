"""What an ONNX file takes, read from the file itself, and inputs for it: from a data file, or random."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from afm_fx.columns import DataFile
from afm_fx.file_batches import match_columns
from afm_fx.input_mapping import METADATA_KEY, InputMapping
from afm_fx.onnx_file import read_safe_onnx


def onnx_input_examples(path: Path) -> list[tuple[str, Tensor]]:
    """Name and example of every input of an ONNX file: 2 rows of zeros, 1 along other free axes.

    Raises:
        FileFormatError: there is no such file, or it is no ONNX file.
    """
    model = read_safe_onnx(path)
    constants = {constant.name for constant in model.graph.initializer}
    examples = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        sizes = [size.dim_value if size.HasField("dim_value") else 0 for size in tensor.shape.dim]
        shape = [size or (2 if axis == 0 else 1) for axis, size in enumerate(sizes)]
        examples.append((value.name, torch.zeros(shape, dtype=getattr(torch, numpy_type.name))))
    return examples


def traffic_examples(
    paths: Sequence[Path], columns: Collection[str] = ()
) -> tuple[list[tuple[str, Tensor]], InputMapping | None]:
    """Name and example of inputs that some files can all be given, and the mapping of the typed files among them.

    A file with typed inputs can be given the original's, because its metadata tells how to convert them. So these are
    the original's inputs where one of the files has typed ones, else those of the first file. Where all files are
    typed, inputs that carry ids are float64, which has room for every id.

    Args:
        paths: the files.
        columns: what the data have; where they name every typed input, these are taken and not the original's.

    Raises:
        FileFormatError: see :func:`onnx_input_examples`, or the metadata are damaged.
    """
    mappings = {path: mapping_of(read_safe_onnx(path)) for path in paths}
    typed = next(((path, mapping) for path, mapping in mappings.items() if mapping is not None), None)
    if typed is None:
        return onnx_input_examples(paths[0]), None
    path, mapping = typed
    if {each.name for each in mapping.inputs} <= set(columns):
        return onnx_input_examples(path), None
    only_typed = None not in mappings.values()
    examples = []
    for each in mapping.originals:
        exact = only_typed and mapping.id_columns(each.name)
        dtype = torch.float64 if exact else getattr(torch, each.dtype)
        examples.append((each.name, torch.zeros((2, *each.shape), dtype=dtype)))
    return examples, mapping


def mapping_of(model: onnx.ModelProto) -> InputMapping | None:
    """What a file with typed inputs says of the original's inputs, None for other files.

    Raises:
        FileFormatError: the note is damaged.
    """
    notes = {entry.key: entry.value for entry in model.metadata_props}
    return InputMapping.from_json(notes[METADATA_KEY]) if METADATA_KEY in notes else None


def inputs_from_file(file: DataFile, examples: list[tuple[str, Tensor]], rows: int) -> dict[str, Tensor]:
    """The first rows of a data file as inputs by name.

    Raises:
        BatchError: the file does not fit the inputs.
    """
    names = [name for name, _ in examples]
    return dict(zip(names, next(match_columns(file, examples).chunks(rows)), strict=True))


def random_onnx_inputs(
    examples: list[tuple[str, Tensor]], rows: int, seed: int = 0, mapping: InputMapping | None = None
) -> dict[str, Tensor]:
    """Uniform numbers in [0, 1) for floating inputs, 0 or 1 for whole ones: valid ids of any table of 2 rows.

    Args:
        examples: name and example of each input.
        rows: rows to draw.
        seed: of the numbers.
        mapping: tells which columns of floating inputs are ids; they are 0 or 1 too.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, example in examples:
        shape = (rows, *example.shape[1:])
        uniform = torch.rand(shape, generator=generator)
        if not example.is_floating_point():
            inputs[name] = (uniform < 0.5).to(example.dtype)
            continue
        flat = uniform.reshape(rows, -1)
        ids = [] if mapping is None else mapping.id_columns(name)
        flat[:, ids] = (flat[:, ids] < 0.5).float()
        inputs[name] = flat.reshape(shape).to(example.dtype)
    return inputs
