"""What exported files are fed with: batches bound to their inputs by name or position, typed inputs made of the
original's, rows of a data file, or random ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError
from afm_fx.program import InputMapping, Inputs, dtype_name
from afm_fx.runtime.artifact import FileValue, read_artifact


def bind_batch(
    batch: Inputs, values: Sequence[FileValue], mapping: InputMapping | None, *, any_rows: bool = False
) -> list[Tensor]:
    """The tensors that a file takes, in its order.

    Args:
        batch: a dict of exactly the file's names, or tensors in its order; for a file with typed inputs, a batch of
            the original's too.
        mapping: how typed inputs are made of the original's, None for plain inputs.
        any_rows: accept any number of rows where the file takes one.

    Raises:
        BatchError: another number of inputs, other shapes or number formats, or no valid ids; the message begins with
            a verb.
    """
    tensors = _tensors(batch, [value.name for value in values])
    if mapping is not None:
        fit = len(tensors) == len(values) and all(
            value.fits(tensor, any_rows=any_rows) for value, tensor in zip(values, tensors, strict=True)
        )
        tensors = tensors if fit else _converted(batch, values, mapping) or tensors
    if len(tensors) != len(values):
        names = ", ".join(value.name for value in values)
        raise BatchError(f"takes {len(values)} inputs ({names}), the batch holds {len(tensors)}")
    for value, tensor in zip(values, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise BatchError(f"takes input '{value.name}' as a tensor, the batch holds a {type(tensor).__name__}")
        if not value.fits(tensor, any_rows=any_rows):
            held = f"{dtype_name(tensor)} {list(tensor.shape)}"
            raise BatchError(f"takes input '{value.name}' as {value.kind}, the batch holds {held}")
    return tensors


def batch_rows(values: Sequence[FileValue], tensors: Sequence[Tensor]) -> int:
    """The rows of bound tensors; 1 where no input carries a batch.

    Raises:
        BatchError: there are none, or the inputs disagree; the message begins with a verb.
    """
    sizes = {value.name: tensor.shape[0] for value, tensor in zip(values, tensors, strict=True) if value.batched}
    rows = next(iter(sizes.values()), 1)
    if any(size != rows for size in sizes.values()):
        raise BatchError(f"takes one batch size, but the inputs disagree on it: {sizes}")
    if rows == 0:
        raise BatchError("takes at least one row, the batch is empty (0 rows)")
    return rows


def _converted(batch: Inputs, values: Sequence[FileValue], mapping: InputMapping) -> list[Tensor] | None:
    """The typed inputs of a batch of the original's, None where it is none."""
    originals = [each.name for each in mapping.originals]
    tensors = _tensors(batch, originals)
    if [tuple(each.shape[1:]) for each in tensors] != [each.shape for each in mapping.originals]:
        return None
    try:
        converted = mapping.convert(dict(zip(originals, tensors, strict=True)))
    except BatchError as error:
        raise BatchError(f"does not take this batch: {error}") from error
    return [converted[value.name] for value in values]


def _tensors(batch: Inputs, names: Sequence[str]) -> list[Tensor]:
    """The tensors of a batch: by name where it is a dict of these names, else in their order."""
    mapping = batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch
    if isinstance(mapping, dict) and mapping.keys() == set(names):
        return [mapping[name] for name in names]
    leaves = [batch] if isinstance(batch, Tensor) else pytree.tree_leaves(batch)  # a walk takes 10 us
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def file_examples(values: Sequence[FileValue], rows: int = 2) -> list[tuple[str, Tensor]]:
    """Name and example of every input of a file: zeros, so many rows where that is free, 1 along other free axes."""
    examples = []
    for value in values:
        shape = [
            size if isinstance(size, int) else rows if value.batched and axis == 0 else 1
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


def random_file_inputs(
    examples: Sequence[tuple[str, Tensor]],
    rows: int | None = None,
    mapping: InputMapping | None = None,
    *,
    largest: int = 1,
) -> dict[str, Tensor]:
    """Uniform numbers in [0, 1), and ids that the tables take where the mapping knows them.

    Args:
        rows: rows to draw; as many as each example has where left out.
        mapping: of the typed inputs, which tells what columns are ids, the original's too, and which ids there are.
        largest: ids, and all whole numbers, of which nothing is known go from 0 to this one.
    """
    generator = torch.Generator().manual_seed(0)
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
