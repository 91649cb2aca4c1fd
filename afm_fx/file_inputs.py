"""Binds batches to the inputs of an exported file: by name or position, typed inputs made of the original's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError
from afm_fx.input_mapping import InputMapping
from afm_fx.inputs import Inputs


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
