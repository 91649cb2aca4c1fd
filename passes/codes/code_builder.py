"""Builds the nodes that work on codes: column picks, views, decoders, absorbed weights.

The same builder serves the rewrite and the analysis. In a *dry* build new parameters have a shape but no data, and
nothing as large as a weight is computed, so that the analysis is the rewrite itself on a throw-away graph and cannot
disagree with it. (The small constants of decoders are computed in both: that costs less than to avoid it.)
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from passes.codes.decoder import Part
from passes.codes.low_rank_value import Block, LowRankValue, merge_identities, plain_block, split_rows
from passes.graph import aten, buffer, call, constant_of, parameter, value_of


@dataclass(frozen=True)
class NewParameter:
    """A parameter that a rewrite made, and the code widths that its size depends on.

    Attributes:
        shape: [n] or [n, m] at the ranks of the rewrite.
        rows: the parts of codes along its first axis.
        needs: the sites without whose factors it would not be there; empty where it replaces one that always is.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    needs: frozenset[str]


class CodeBuilder:
    """Emits nodes before a given node of one graph.

    Args:
        dry: make parameters without data.

    Attributes:
        features: gives the node with the features of a node that has a value; set by whoever walks the graph.
        node: the node that the nodes made stand for.
    """

    features: Callable[[Node], Node]

    def __init__(self, module: GraphModule, *, dry: bool = False) -> None:
        self.module = module
        self.graph = module.graph
        self.dry = dry
        self.node, self.rule = next(iter(self.graph.nodes)), ""
        self.first_call = next(node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr"))
        self.made: list[NewParameter] = []
        self.spared: dict[str, frozenset[str]] = {}
        self.shared: dict[Hashable, Any] = {}
        self._constants: dict[Node, Tensor | None] = {}

    @contextlib.contextmanager
    def standing_for(self, node: Node, rule: str) -> Iterator[None]:
        """Nodes made here stand for a node, and a rule makes them."""
        before = self.node, self.rule
        self.node, self.rule = node, rule
        try:
            yield
        finally:
            self.node, self.rule = before

    def state(self) -> tuple[int, int, dict[str, frozenset[str]]]:
        """What was made so far, for :meth:`reset`."""
        return len(self.made), len(self.shared), dict(self.spared)

    def reset(self, state: tuple[int, int, dict[str, frozenset[str]]]) -> None:
        """Forgets what was made since; its nodes are the caller's to erase."""
        made, shared, self.spared = state
        del self.made[made:]
        for key in list(self.shared)[shared:]:
            del self.shared[key]

    def constant(self, node: Any) -> Tensor | None:
        """The value of a node that depends on parameters and constants only, None for any other."""
        if not isinstance(node, Node):
            return None
        if node not in self._constants:
            self._constants[node] = self._evaluate(node)
        return self._constants[node]

    def _evaluate(self, node: Node) -> Tensor | None:
        if node.op == "get_attr":
            return constant_of(self.module, node)
        operands = node.all_input_nodes
        if not operands or not callable(node.target):
            return None
        if any(self.constant(operand) is None for operand in operands):
            return None
        args, kwargs = pytree.tree_map(
            lambda leaf: self.constant(leaf) if isinstance(leaf, Node) else leaf, (node.args, node.kwargs)
        )
        result = node.target(*args, **kwargs)
        return result if isinstance(result, Tensor) else None

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """One node at the insertion point, standing for the node at hand."""
        return call(self.graph, target, *args, rule=self.rule, like=self.node, **kwargs)

    def new_parameter(
        self,
        name: str,
        tensor: Tensor,
        like: Tensor,
        *,
        rows: Sequence[Part] = (),
        columns: Sequence[Part] = (),
        needs: frozenset[str] = frozenset(),
    ) -> Node:
        """A parameter in the number format and on the device of another tensor.

        Args:
            rows: see :class:`NewParameter`, as for ``columns`` and ``needs``.
        """
        if self.dry:
            blank = torch.empty(tensor.shape, device="meta", dtype=like.dtype)
            node = parameter(self.module, name, blank, rule=self.rule, device=like.device)
        else:
            node = parameter(self.module, name, tensor.to(device=like.device, dtype=like.dtype), rule=self.rule)
        self.made.append(NewParameter(str(node.target), tuple(tensor.shape), tuple(rows), tuple(columns), needs))
        return node

    def spare(self, weight: Node | None, sites: frozenset[str]) -> None:
        """Notes that decoders took a weight in, which features need where one of these sites is left alone."""
        if weight is not None and weight.op == "get_attr":
            self.spared[str(weight.target)] = self.spared.get(str(weight.target), frozenset()) | sites

    def new_index(self, index: Sequence[int], near: Node) -> Node:
        """Positions as a buffer on the device of another node's value, made once per graph."""
        return self.new_buffer("positions", torch.tensor(list(index)), ("index", tuple(index)), near)

    def new_buffer(self, name: str, tensor: Tensor, key: Hashable, near: Node) -> Node:
        """A constant that is no parameter, on the device of another node's value, made once per key."""
        if key not in self.shared:
            self.shared[key] = buffer(self.module, name, tensor.to(device=value_of(near).device), rule=name)
        node: Node = self.shared[key]
        return node

    def sizes(self, code: Node, lead: Sequence[Any], *tail: int) -> list[Any]:
        """The arguments of a view to ``[*lead, *tail]``, where ``lead`` are leading axes of ``code``."""
        symbolic = [axis for axis, size in enumerate(lead) if not isinstance(size, int)]
        if len(symbolic) <= 1:
            return [-1 if axis in symbolic else size for axis, size in enumerate(lead)] + list(tail)
        named = [
            self.emit(aten.sym_size.int, code, axis) if axis in symbolic else size for axis, size in enumerate(lead)
        ]
        return [*named, *tail]

    def view(self, code: Node, lead: Sequence[Any], *tail: int) -> Node:
        """``code`` seen as ``[*lead, *tail]``; ``lead`` must be leading axes of ``code``."""
        shape = tuple(value_of(code).shape)
        if len(shape) == len(lead) + len(tail) and shape[len(lead) :] == tail:
            return code
        return self.emit(aten.reshape.default, code, self.sizes(code, lead, *tail))

    def pick(self, node: Node, columns: Sequence[int]) -> Node:
        """Columns of the last axis, as slices; for no columns, one of zeros."""
        axis = len(value_of(node).shape) - 1
        if not columns:
            first = self.pick(node, [0])
            return self.emit(aten.zeros_like.default, first)
        if list(columns) == list(range(width_of(node))):
            return node
        pieces = [self.emit(aten.slice.Tensor, node, axis, first, end) for first, end in _runs(columns)]
        return self.beside(pieces)

    def beside(self, parts: Sequence[Node]) -> Node:
        """Nodes concatenated along their last axis; a single one as it is."""
        if len(parts) == 1:
            return parts[0]
        axis = len(value_of(parts[0]).shape) - 1
        return self.emit(aten.cat.default, list(parts), axis)

    def column(self, vector: Node) -> Node:
        """A vector [n] as [n, 1]."""
        return self.emit(aten.reshape.default, vector, [-1, 1])

    def compact(self, value: LowRankValue) -> LowRankValue:
        """The value with only the code columns and units that its blocks use, or one column of zeros."""
        columns = sorted({column for block in value.blocks for column in block.columns})
        units = sorted({block.unit for block in value.blocks if block.unit is not None})
        to_column = {column: place for place, column in enumerate(columns)}
        to_unit = {unit: place for place, unit in enumerate(units)}
        code = self.pick(value.code, columns)
        kept = None
        if value.units is not None and units:
            kept = self.pick(value.units, units)
        blocks = tuple(
            replace(
                block,
                columns=tuple(to_column[column] for column in block.columns),
                unit=None if block.unit is None else to_unit[block.unit],
            )
            for block in value.blocks
        )
        return replace(value, code=code, units=kept, blocks=blocks)

    def on_lead(self, value: LowRankValue, change: Callable[[Node], Node]) -> LowRankValue:
        """Applies a change of the leading axes to code and units alike."""
        code = change(value.code)
        units = None if value.units is None else change(value.units)
        return replace(value, code=code, units=units, lead=tuple(value_of(code).shape)[:-1])

    def pull(self, value: LowRankValue, axes: int) -> LowRankValue | None:
        """Makes the last ``axes`` leading axes feature axes; None where their sizes are not static."""
        if axes == 0:
            return value
        pulled = value.lead[-axes:]
        if not all(isinstance(size, int) for size in pulled):
            return None
        repeats, lead = math.prod(pulled), value.lead[:-axes]
        width, units = width_of(value.code), 0 if value.units is None else width_of(value.units)
        blocks = [block.moved(turn * width, turn * units) for turn in range(repeats) for block in value.blocks]
        return LowRankValue(
            self.view(value.code, lead, repeats * width),
            lead,
            (*pulled, *value.trailing),
            merge_identities(blocks),
            None if value.units is None else self.view(value.units, lead, repeats * units),
        )

    def push(self, value: LowRankValue) -> LowRankValue | None:
        """Leaves one feature axis by making the others leading axes; None where their decoders differ."""
        outer = value.trailing[:-1]
        if not outer:
            return value
        rows = split_rows(value.blocks, value.trailing[-1])
        if rows is None or not all(_decode_alike(rows[0], row) for row in rows):
            return None
        row_columns = [[column for block in row for column in block.columns] for row in rows]
        row_units = [[block.unit for block in row if block.unit is not None] for row in rows]
        width, units = len(row_columns[0]), len(row_units[0])
        code = self.pick(value.code, list(itertools.chain(*row_columns)))
        if not width:  # constants alone: every row's code is one column of zeros
            ones = [1] * len(outer)
            code = self.view(code, value.lead, *ones, 1)
            sizes = [*(-1 for _ in value.lead), *outer, 1]
            code, width = self.emit(aten.expand.default, code, sizes), 1
        kept = None
        if value.units is not None and units:
            kept = self.pick(value.units, list(itertools.chain(*row_units)))
            kept = self.view(kept, value.lead, *outer, units)
        return LowRankValue(
            self.view(code, value.lead, *outer, width),
            (*value.lead, *outer),
            value.trailing[-1:],
            _renumbered(rows[0]),
            kept,
        )

    def dense(self, node: Node, axes: int) -> LowRankValue | None:
        """A dense node as a value of identity blocks over its last ``axes`` axes; None where they are not static.

        Its code is the node itself, not yet flattened to one feature axis.
        """
        shape = tuple(value_of(node).shape)
        lead, trailing = shape[: len(shape) - axes], shape[len(shape) - axes :]
        if not all(isinstance(size, int) for size in trailing):
            return None
        return LowRankValue(node, lead, trailing, (plain_block(math.prod(trailing)),))


def width_of(node: Node) -> int:
    """The static size of a node's last axis."""
    return int(value_of(node).shape[-1])


def _runs(columns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Contiguous ascending runs as (first, end)."""
    first = previous = columns[0]
    for column in columns[1:]:
        if column != previous + 1:
            yield first, previous + 1
            first = column
        previous = column
    yield first, previous + 1


def _decode_alike(one: Sequence[Block], other: Sequence[Block]) -> bool:
    return len(one) == len(other) and all(map(Block.decodes_like, one, other))


def _renumbered(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks with columns and units of their own, in order."""
    result, column, unit = [], 0, 0
    for block in blocks:
        rank = len(block.columns)
        own = None if block.unit is None else unit
        result.append(replace(block, columns=tuple(range(column, column + rank)), unit=own))
        column, unit = column + rank, unit + (own is not None)
    return tuple(result)
