"""Lookups: every way in which a graph takes rows out of a table.

| the model writes | the graph holds |
|---|---|
| ``nn.Embedding``, ``index_select``, ``gather`` | ``embedding(T, ids)`` |
| ``T[ids]`` | ``index(T, [ids])``, which counts negative ids from the end |
| ``nn.EmbeddingBag`` | ``embedding_bag(T, ids, offsets, ...)[0]`` |

(:mod:`passes.canonical.row_lookups` brings the first row to its form.) A bag is linear in its rows,
``sum_i w_i A z_i = A sum_i w_i z_i``, so each lookup is done on codes by the same operator with the codes in the
table's place. An offset is added to a row once: it survives a mean of at least one row, but not a sum, nor a bag that
may be empty and is then zero.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from passes.graph import aten, known_true, shape_of, value_of

BAGS = frozenset(
    {
        aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag.default,
        aten._embedding_bag_forward_only.default,
    }
)  # fmt: skip

MAXIMUM = "its rows are pooled by their maximum, which only the features themselves have"
BOOKKEEPING = "the model reads more of an embedding bag than the pooled rows, and that needs the table as it is"
_MASKS = frozenset({torch.bool, torch.uint8})


class Pooling(StrEnum):
    """What a bag makes of its rows, in the order of torch's mode numbers."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"


@dataclass(frozen=True)
class Lookup:
    """One lookup of rows of a table.

    Attributes:
        features: the node that holds the features: ``node`` itself, or the first of a bag's results.
        ids: the node of the ids, of any shape (of a bag: one axis).
        keeps_zero: whether features have to stay exactly zero somewhere, or are summed, so that a code of them may
            carry no offset.
        pooling: what a bag does, None for single rows.
        refusal: why the table must stay as it is, None where its rows may be codes.
    """

    node: Node
    features: Node
    ids: Node
    keeps_zero: bool
    pooling: Pooling | None = None
    refusal: str | None = None


def lookup_of(node: Node, table: Node) -> Lookup | None:
    """The lookup that a node does in this table, None where it does something else with it."""
    if [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if leaf is table] != [table]:
        return None
    if node.target is aten.embedding.default and node.args[0] is table and isinstance(node.args[1], Node):
        return Lookup(node, node, node.args[1], keeps_zero=_padding_row(node) is not None)
    if node.target is aten.index.Tensor and node.args[0] is table:
        ids = _row_index(node)
        return None if ids is None else Lookup(node, node, ids, keeps_zero=False)
    if node.target in BAGS and bag_arguments(node)["weight"] is table:
        return _bag(node)
    return None


def ids_of(node: Node) -> Node | None:
    """The ids that a node looks up, whatever the table; None where it looks nothing up."""
    if node.target is aten.embedding.default or node.target in BAGS:
        ids = node.args[1]
        return ids if isinstance(ids, Node) else None
    return _row_index(node) if node.target is aten.index.Tensor else None


def bag_arguments(node: Node) -> dict[str, Any]:
    """A bag's arguments by name, those that were left out with their defaults, in order."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {
        argument.name: given.get(argument.name, node.kwargs.get(argument.name, argument.default_value))
        for argument in schema
    }


def bag_length(node: Node) -> int | None:
    """The number of ids of every bag where that is one known number (ids of two axes), None elsewhere."""
    arguments = bag_arguments(node)
    ids, offsets = arguments["indices"], arguments["offsets"]
    if offsets.target is not aten.arange.start_step or arguments["include_last_offset"]:
        return None
    first, end, *rest = offsets.args
    step = rest[0] if rest else 1
    last = value_of(end) if isinstance(end, Node) else end
    length = shape_of(ids)
    if first != 0 or not isinstance(step, int) or step < 1 or length is None:
        return None
    exact = known_true(last == length[0]) and known_true(length[0] % step == 0)
    return step if exact else None


def bag_padding(node: Node) -> int | None:
    """The id that a bag leaves out, None where there is none."""
    padding = bag_arguments(node).get("padding_idx")
    return padding if isinstance(padding, int) and padding >= 0 else None


def pooling_of(node: Node) -> Pooling:
    """What a bag makes of its rows."""
    return list(Pooling)[int(bag_arguments(node)["mode"])]


def _bag(node: Node) -> Lookup:
    readers = list(node.users)
    pooled = [user for user in readers if user.target is operator.getitem and user.args[1] == 0]
    pooling = pooling_of(node)
    never_empty = bag_length(node) is not None and bag_padding(node) is None
    refusal = MAXIMUM if pooling is Pooling.MAX else BOOKKEEPING if pooled != readers or len(pooled) != 1 else None
    return Lookup(
        node,
        features=pooled[0] if pooled else node,
        ids=bag_arguments(node)["indices"],
        keeps_zero=not (pooling is Pooling.MEAN and never_empty),
        pooling=pooling,
        refusal=refusal,
    )


def _padding_row(node: Node) -> int | None:
    """The row of a lookup that has to stay zero, None where there is none."""
    padding = node.args[2] if len(node.args) > 2 else node.kwargs.get("padding_idx", -1)
    return padding if isinstance(padding, int) and padding >= 0 else None


def _row_index(node: Node) -> Node | None:
    """The ids of ``T[ids]`` where that takes whole rows."""
    indices: Sequence[Any] = node.args[1]  # type: ignore[assignment]
    index, *rest = indices
    if not isinstance(index, Node) or any(each is not None for each in rest):
        return None
    return None if value_of(index).dtype in _MASKS else index
