"""What exported files are fed with: batches bound to their inputs by name or position, typed inputs made of the
original's, rows of a data file, or random ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.artifact import FileValue, read_artifact
from afm_fx.data_files import DataFile
from afm_fx.errors import BatchError
from afm_fx.file_batches import match_columns
from afm_fx.input_mapping import METADATA_KEY, InputMapping
from afm_fx.inputs import Inputs

ONNX_TYPES = {
    torch.float32: "tensor(float)", torch.float64: "tensor(double)", torch.float16: "tensor(float16)",
    torch.bfloat16: "tensor(bfloat16)", torch.bool: "tensor(bool)", torch.uint8: "tensor(uint8)",
    torch.int8: "tensor(int8)", torch.int16: "tensor(int16)", torch.int32: "tensor(int32)",
    torch.int64: "tensor(int64)",
}  # fmt: skip


def file_tensors(batch: Inputs, names: Sequence[str], note: str | InputMapping | None) -> list[Tensor]:
    """The tensors that a file takes, in its order.

    Args:
        batch: a dict of exactly the file's names, or tensors in its order; for a file with typed inputs, a batch of
            the original's too.
        names: the file's inputs.
        note: what the file's metadata say on typed inputs (:mod:`afm_fx.input_mapping`), read already or not; None for
            plain inputs.

    Raises:
        BatchError: another number of inputs, or no valid ids; the message begins with a verb.
    """
    tensors = _converted(batch, names, note)
    if tensors is None:
        tensors = _tensors(batch, names)
    if len(tensors) != len(names):
        raise BatchError(f"takes {len(names)} inputs ({', '.join(names)}), the batch holds {len(tensors)}")
    return tensors


def _converted(batch: Inputs, names: Sequence[str], note: str | InputMapping | None) -> list[Tensor] | None:
    """The typed inputs of a batch of the original's; None where the file has none, or the batch is typed."""
    if note is None:
        return None
    mapping = InputMapping.from_json(note) if isinstance(note, str) else note
    originals = [each.name for each in mapping.originals]
    tensors = _tensors(batch, originals)
    if [tuple(each.shape[1:]) for each in tensors] != [each.shape for each in mapping.originals]:
        return None
    if mapping.takes(_tensors(batch, [each.name for each in mapping.inputs])):
        return None
    try:
        converted = mapping.convert(dict(zip(originals, tensors, strict=True)))
    except BatchError as error:
        raise BatchError(f"does not take this batch: {error}") from error
    return [converted[name] for name in names]


def _tensors(batch: Inputs, names: Sequence[str]) -> list[Tensor]:
    """The tensors of a batch: by name where it is a dict of these names, else in their order."""
    mapping = batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch
    if isinstance(mapping, dict) and set(mapping) == set(names):
        return [mapping[name] for name in names]
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def feed_of(session: Any, batch: Inputs) -> dict[str, Any]:
    """What to give ``session.run``: by name where the batch is a dict of the file's input names, else by position.

    A file with typed inputs takes a batch of the original's too: its metadata tells how to convert it.

    Raises:
        BatchError: the file takes other inputs; the message begins with a verb.
    """
    wanted = session.get_inputs()
    names = [value.name for value in wanted]
    tensors = file_tensors(batch, names, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY))
    for value, tensor in zip(wanted, tensors, strict=True):
        check_tensor(value, tensor)
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def check_tensor(value: Any, tensor: Any, *, free_rows: bool = False) -> None:
    """Refuses a tensor that an input does not take.

    Args:
        value: the input as ONNX Runtime describes it.
        tensor: what is given for it.
        free_rows: accept any length of axis 0.

    Raises:
        BatchError: another shape or number format; the message begins with "takes".
    """
    if not isinstance(tensor, Tensor):
        raise BatchError(f"takes input '{value.name}' as a tensor, the batch holds a {type(tensor).__name__}")
    shape = list(tensor.shape)
    fits = len(shape) == len(value.shape) and all(
        not isinstance(size, int) or size == given or (free_rows and axis == 0)
        for axis, (size, given) in enumerate(zip(value.shape, shape, strict=True))
    )
    kind = ONNX_TYPES.get(tensor.dtype)
    if not fits or kind != value.type:
        raise BatchError(
            f"takes input '{value.name}' as {value.type} {value.shape}, the batch holds {kind or tensor.dtype} {shape}"
        )


def file_examples(values: Sequence[FileValue]) -> list[tuple[str, Tensor]]:
    """Name and example of every input of a file: 2 rows of zeros, 1 along other free axes."""
    examples = []
    for value in values:
        shape = [
            size if isinstance(size, int) else 2 if value.batched and axis == 0 else 1
            for axis, size in enumerate(value.shape)
        ]
        examples.append((value.name, torch.zeros(shape, dtype=getattr(torch, value.dtype))))
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
        FileFormatError: a file is missing or damaged, or its metadata are.
    """
    artifacts = [read_artifact(path) for path in paths]
    typed = next((artifact for artifact in artifacts if artifact.mapping is not None), None)
    if typed is None or typed.mapping is None:
        return file_examples(artifacts[0].inputs), None
    mapping = typed.mapping
    if {each.name for each in mapping.inputs} <= set(columns):
        return file_examples(typed.inputs), None
    only_typed = all(artifact.mapping is not None for artifact in artifacts)
    examples = []
    for each in mapping.originals:
        exact = only_typed and mapping.id_columns(each.name)
        dtype = torch.float64 if exact else getattr(torch, each.dtype)
        examples.append((each.name, torch.zeros((2, *each.shape), dtype=dtype)))
    return examples, mapping


def inputs_from_file(file: DataFile, examples: list[tuple[str, Tensor]], rows: int) -> dict[str, Tensor]:
    """The first rows of a data file as inputs by name.

    Raises:
        BatchError: the file does not fit the inputs.
    """
    names = [name for name, _ in examples]
    return dict(zip(names, next(match_columns(file, examples).chunks(rows)), strict=True))


def random_file_inputs(
    examples: Sequence[tuple[str, Tensor]],
    rows: int | None = None,
    seed: int = 0,
    mapping: InputMapping | None = None,
    *,
    largest: int = 1,
) -> dict[str, Tensor]:
    """Uniform numbers in [0, 1), and ids that the tables take where the mapping knows them.

    Args:
        examples: name and example of each input.
        rows: rows to draw; as many as each example has where left out.
        seed: of the numbers.
        mapping: of the typed inputs, which tells what columns are ids, the original's too, and which ids there are.
        largest: ids, and all whole numbers, of which nothing is known go from 0 to this one.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, example in examples:
        shape = (example.shape[0] if rows is None else rows, *example.shape[1:]) if example.dim() else ()
        flat = torch.rand(shape, generator=generator, dtype=torch.float64).reshape(shape[0] if shape else 1, -1)
        if example.is_floating_point():
            ids = dict.fromkeys(() if mapping is None else mapping.id_columns(name), (0, largest))
        else:
            ids = dict.fromkeys(range(flat.shape[1]), (0, largest))
        ids |= {} if mapping is None else mapping.id_ranges(name)
        for column, (low, high) in ids.items():
            if example.dtype is torch.float32:  # beyond, rounding could lead out of the table
                high = min(high, 2**24)  # noqa: PLW2901
            flat[:, column] = (low + flat[:, column] * (high - low + 1)).floor()
        inputs[name] = flat.reshape(shape).to(example.dtype)
    return inputs
