"""Lets a Linear read a whole range of features where it read pieces of it, with zero weights for those between.

Replaces ``W cat(x[a:b], x[c:d], ...)`` with ``W' x[a:z]``, where ``W'`` has zero columns for the features not read,
and ``W (cat(x[a:b], x[c:d], ...) ** 2)`` with ``W' (x[a:z] ** 2)``.

A gather of padded rows (codes of different widths, the linear term's weight beside the embedding) is read so without a
copy per field. The zeros cost products; they are kept where these cost less than the copies, for one row and for many.
Features that are read by zero weights must be finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.graph import (
    SOURCE_AND_WEIGHT,
    Columns,
    FeatureColumns,
    GraphPass,
    args_of,
    aten,
    call,
    constant_of,
    derived_name,
    finish,
    parameter,
    replace_node,
    shape_of,
    weighted_call,
)
from passes.serving.assemble import Assembler
from passes.serving.collapse_moves import Demand, Family, assemble_if_cheaper, families_of
from passes.serving.row_terms import squared
from passes.serving.serving_cost import PRODUCTS_PER_US, products

RULE = "widen linears"

_PRODUCTS = (aten.linear.default, aten.mm.default, aten.addmm.default)


class WidenLinears(GraphPass):
    """Replaces the pieces that Linears read by ranges that hold them, and their weights by wider ones."""

    after = ("CollapseMoves",)
    """It reads moves in their shortest form."""

    def rewrite(self, graph_module: GraphModule) -> None:
        finish(graph_module)
        while _widen_one(graph_module):
            pass  # what the others read may have changed with it


def _widen_one(module: GraphModule) -> bool:
    columns = FeatureColumns(module)
    return any(_widen(module, columns, family) for family in families_of(module, columns))


@dataclass(frozen=True)
class _Wide:
    """A product with a weight [outputs, features] that can read more features than it did: those of a cover.

    Attributes:
        reader: the product; what takes the features is this itself, or squares them for it.
    """

    demand: Demand
    reader: Node
    weight: Tensor
    cover: Columns

    def more_us(self) -> float:
        """Microseconds per row of the products with zeros."""
        outputs, inputs = self.weight.shape
        return (products(len(self.cover), outputs) - products(inputs, outputs)) / PRODUCTS_PER_US

    @torch.no_grad()
    def wider(self) -> Tensor:
        """The weight with a column for everything that is read."""
        place = {int(column): position for position, column in enumerate(self.cover)}
        where = torch.tensor([place[int(column)] for column in self.demand.columns], device=self.weight.device)
        return self.weight.new_zeros(len(self.weight), len(self.cover)).index_add(1, where, self.weight.detach())


def _widen(module: GraphModule, columns: FeatureColumns, family: Family) -> bool:
    """Widens all products of a family that can be, and keeps that where it is cheaper."""
    assembler = Assembler(module, columns, RULE)
    wide = [found for demand in family.demands if (found := _wide(module, columns, demand)) is not None]
    only_wide = _whole_operands(wide, family.demands)
    wide = [each for each in wide if each.demand.operand in only_wide]
    if not any(len(assembler.boxes(each.cover)) < len(assembler.boxes(each.demand.columns)) for each in wide):
        return False
    covers = {each.demand.operand: each.cover for each in wide}
    wanted = {each.operand: covers.get(each.operand, each.columns) for each in family.demands}
    made = assemble_if_cheaper(assembler, family, wanted, sum(each.more_us() for each in wide))
    if made is None:
        return False
    for demand in family.demands:
        if demand.operand not in covers:
            demand.consumer.replace_input_with(demand.operand, made[demand.operand])
    for each in wide:
        _replace(module, each, made[each.demand.operand])
    return True


def _wide(module: GraphModule, columns: FeatureColumns, demand: Demand) -> _Wide | None:
    """The product that takes these features, if its weight is its own and nothing else of it depends on them."""
    node, source = demand.consumer, demand.operand
    if squared(node) is source and len(node.users) == 1:
        node, source = next(iter(node.users)), node
    product = weighted_call(module, node, *_PRODUCTS) if demand.columns.ndim == 1 else None
    if product is None or product.source is not source or args_of(node).count(source) != 1:
        return None
    is_weight = isinstance(constant_of(module, product.weight_node), nn.Parameter)
    if is_weight and not product.is_only_reader:  # columns of ones are shared, and small
        return None
    return _Wide(demand, node, product.weight, _cover(columns, demand.columns))


def _whole_operands(wide: Sequence[_Wide], demands: Sequence[Demand]) -> set[Node]:
    """The operands of which every reader can be widened."""
    able = {(each.demand.consumer, each.demand.operand) for each in wide}
    return {each.demand.operand for each in wide} - {
        demand.operand for demand in demands if (demand.consumer, demand.operand) not in able
    }


def _cover(columns: FeatureColumns, wanted: Columns) -> Columns:
    """For every source the range of each of its axes that holds all that is wanted of it, in order of appearance."""
    which, places = columns.sources(wanted)
    parts = []
    for number in dict.fromkeys(which.tolist()):
        source = columns.node(int(number))
        trailing = tuple(shape_of(source) or ())[1:]
        mine = places[which == number]
        start = int(wanted[which == number][0]) - int(mine[0])
        if not trailing:
            parts.append(np.asarray([start], dtype=np.int64))
            continue
        axes = np.unravel_index(mine, trailing)
        box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in axes)
        parts.append(start + np.arange(math.prod(trailing), dtype=np.int64).reshape(trailing)[box].reshape(-1))
    return np.concatenate(parts)


def _replace(module: GraphModule, wide: _Wide, source: Node) -> None:
    """Puts the wider product in the place of the narrow one."""
    node, square = wide.reader, wide.demand.consumer
    where, which = SOURCE_AND_WEIGHT[node.target]
    operands = list(args_of(node))
    weight = wide.wider()
    if node.target is not aten.linear.default:
        weight = weight.mT.contiguous()
    name = derived_name(str(operands[which].target), "wide")
    trainable = bool(wide.weight.requires_grad)
    if square is not node:
        with module.graph.inserting_before(square):
            factors = [source if each is wide.demand.operand else each for each in args_of(square)]
            source = call(module.graph, square.target, *factors, rule=RULE, like=square)  # type: ignore[arg-type]
    with module.graph.inserting_before(node):
        operands[where] = source
        operands[which] = parameter(module, name, weight, rule=RULE, trainable=trainable)
        made = call(module.graph, node.target, *operands, rule=RULE, like=node)  # type: ignore[arg-type]
    replace_node(node, made)
