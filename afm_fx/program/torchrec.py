"""TorchRec models as plain modules that export: padded ids in place of a ``KeyedJaggedTensor``.

``torch.export`` takes a TorchRec model without strict mode, but what it gives holds for the example's lists alone: it
splits the values where the example's features end. Rewriting that graph would mean to guess what was meant, so the
collections are replaced before capture instead. TorchRec comes with no requirement of this package that would fit all:
``pip install fbgemm-gpu-cpu==1.8.0 tensordict torchmetrics==1.0.3 pyre-extensions tqdm`` and
``pip install --no-deps torchrec==1.8.0`` work beside torch 2.13.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from afm_fx.errors import BatchError, MissingPackageError, ModelError
from afm_fx.program.inputs import Inputs
from afm_fx.program.plain_collections import Padding, PlainBags, PlainEmbeddings, padded

_COLLECTION = re.compile(r"Embedding(Bag)?Collection$")
"""Classes that take a ``KeyedJaggedTensor``, sharded ones and those with feature processors included."""


@dataclass(frozen=True)
class PlainModel:
    """A TorchRec model on plain tensors.

    Attributes:
        model: takes the original's arguments with a dict of padded tensors for every ``KeyedJaggedTensor``; its
            parameters are the original's own, under the same names.
    """

    model: nn.Module
    paddings: Mapping[str, Padding]

    def convert(self, inputs: Inputs) -> Inputs:
        """A batch of the original's inputs as a batch of the plain model's.

        Raises:
            BatchError: a list of ids is longer or shorter than its padding allows; feature and row are named.
        """
        return pytree.tree_map(
            lambda leaf: padded(leaf, self.paddings) if _is_jagged(leaf) else leaf, inputs, is_leaf=_is_jagged
        )


def plain(model: nn.Module, example_inputs: Inputs, *, max_lengths: Mapping[str, int] | None = None) -> PlainModel:
    """Replaces the collections of a TorchRec model by lookups of padded ids.

    Args:
        model: an unsharded model, left as it is; parameters are shared, not copied. It may give its
            ``KeyedJaggedTensor`` arguments to collections, and read nothing else of them.
        example_inputs: one batch of the original's inputs (a tuple, or a dict of keyword inputs). Lists that all have
            the same length in it must keep that length; others may be as long as the longest.
        max_lengths: the most ids of a row, by feature, which may then have fewer. Name every feature whose lists may
            be longer, or of other lengths, than in the example.

    Raises:
        MissingPackageError: TorchRec is not installed.
        ModelError: the model has no collection, or one of a kind that is not known (sharded, quantized, with feature
            processors).
        BatchError: the example holds no ``KeyedJaggedTensor``, one with a batch size per feature, or lacks a feature.
    """
    keyed_tensor = _torchrec().sparse.jagged_tensor.KeyedTensor
    collections = _collections(model)
    paddings = _paddings(collections, example_inputs, max_lengths or {})
    memo: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers())}
    for collection in collections:
        memo[id(collection)] = (
            PlainBags(collection, paddings, keyed_tensor)
            if hasattr(collection, "embedding_bags")
            else PlainEmbeddings(collection, paddings)
        )
    return PlainModel(copy.deepcopy(model, memo), paddings)


def _torchrec() -> Any:
    try:
        import torchrec  # noqa: PLC0415 - nobody else needs it
    except ImportError as error:
        raise MissingPackageError(
            f"TorchRec cannot be imported ({error}): docs/platforms.md tells which versions to install"
        ) from error
    return torchrec


def _collections(model: nn.Module) -> list[Any]:
    modules = _torchrec().modules.embedding_modules
    known = {modules.EmbeddingBagCollection, modules.EmbeddingCollection}
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in known and kind.__module__.startswith("torchrec.") and _COLLECTION.search(kind.__name__):
            raise ModelError(
                f"'{name}' is a {kind.__name__}, which is not made plain; EmbeddingBagCollection and "
                "EmbeddingCollection are, unsharded and unquantized"
            )
    collections = [module for module in model.modules() if type(module) in known]
    if not collections:
        raise ModelError(f"{type(model).__name__} has no EmbeddingBagCollection and no EmbeddingCollection")
    return collections


def _is_jagged(leaf: Any) -> bool:
    return isinstance(leaf, _torchrec().sparse.jagged_tensor.KeyedJaggedTensor)


def _paddings(collections: Sequence[Any], example_inputs: Inputs, max_lengths: Mapping[str, int]) -> dict[str, Padding]:
    """The padding of every feature that a collection reads."""
    weighted: dict[str, bool] = {}
    for collection in collections:
        is_bag = hasattr(collection, "embedding_bags")
        configs = collection.embedding_bag_configs() if is_bag else collection.embedding_configs()
        for name in (name for config in configs for name in config.feature_names):
            has_weights = is_bag and bool(collection.is_weighted())
            if weighted.setdefault(name, has_weights) != has_weights:
                raise ModelError(f"feature '{name}' is read with weights by one collection and without by another")
    jagged = [leaf for leaf in pytree.tree_leaves(example_inputs, is_leaf=_is_jagged) if _is_jagged(leaf)]
    if not jagged:
        raise BatchError("the example inputs hold no KeyedJaggedTensor")
    if any(leaf.variable_stride_per_key() or leaf.inverse_indices_or_none() is not None for leaf in jagged):
        raise BatchError("a KeyedJaggedTensor with a batch size per feature (variable stride) is not made plain")
    lists = {name: each for leaf in jagged for name, each in leaf.to_dict().items()}
    unknown = sorted(max_lengths.keys() - weighted.keys())
    if unknown:
        raise BatchError(f"max_lengths names '{unknown[0]}', which no collection reads; they read {sorted(weighted)}")
    return {name: _padding(name, has, lists, max_lengths.get(name)) for name, has in weighted.items()}


def _padding(name: str, weighted: bool, lists: Mapping[str, Any], most: int | None) -> Padding:
    if name not in lists:
        raise BatchError(f"a collection reads feature '{name}', which the example lacks; it has {sorted(lists)}")
    lengths = lists[name].lengths()
    longest, shortest = int(lengths.max()), int(lengths.min())
    if most is not None:
        if most < longest:
            raise BatchError(f"max_lengths[{name!r}] is {most}, and the example holds a row of {longest} ids")
        return Padding(most, ragged=True, weighted=weighted)
    return Padding(max(longest, 1), ragged=longest == 0 or shortest < longest, weighted=weighted)
