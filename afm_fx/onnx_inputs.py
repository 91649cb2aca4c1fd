"""What an ONNX file takes, read from the file itself, and inputs for it: from a data file, or random."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from afm_fx.data_files import DataFile
from afm_fx.errors import FileFormatError
from afm_fx.file_batches import match_columns


def onnx_input_examples(path: Path) -> list[tuple[str, Tensor]]:
    """Name and example of every input of an ONNX file: 2 rows of zeros, 1 along other free axes.

    Raises:
        FileFormatError: there is no such file, or it is no ONNX file.
    """
    if not path.is_file():
        raise FileFormatError(f"there is no ONNX file '{path}'")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise FileFormatError(f"'{path}' is damaged or not an ONNX file: {error}") from error
    if not model.graph.node:
        raise FileFormatError(f"'{path}' is damaged or not an ONNX file: it holds no operators")
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


def inputs_from_file(file: DataFile, examples: list[tuple[str, Tensor]], rows: int) -> dict[str, Tensor]:
    """The first rows of a data file as inputs by name.

    Raises:
        BatchError: the file does not fit the inputs.
    """
    names = [name for name, _ in examples]
    return dict(zip(names, next(match_columns(file, examples).chunks(rows)), strict=True))


def random_onnx_inputs(examples: list[tuple[str, Tensor]], rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Uniform numbers in [0, 1) for floating inputs, 0 or 1 for whole ones: valid ids of any table of 2 rows."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, example in examples:
        shape = (rows, *example.shape[1:])
        uniform = torch.rand(shape, generator=generator)
        inputs[name] = uniform.to(example.dtype) if example.is_floating_point() else (uniform < 0.5).to(example.dtype)
    return inputs
