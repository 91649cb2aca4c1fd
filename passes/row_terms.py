"""Stores what one id adds to a logit as one number per row.

A factorization machine's logit is ``b + sum_f l_f(x_f) + 1/2 |sum_f e_f(x_f)|^2 - 1/2 sum_f |e_f(x_f)|^2 + ...``.
Two of its terms are sums over fields of something that a row knows by itself: the linear weight ``l_f`` and half the
squared norm of the embedding (or of its code). Both, and the constant ``b``, become one number per row, computed once.

Replaces ``sum_f l_f(x_f) + c sum_f |e_f(x_f)|^2 + b``  with ``sum_f t_f(x_f)``, ``t_f = l_f + c |e_f|^2`` (in one field
                                                        ``+ b``),
         ``s sum(x)``, ``s W x`` and other terms        with products that start from the terms before (``addmm``).

Only where the linear term is there already, so that no table becomes wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph_pass import GraphPass
from passes.graph_tools import (
    WeightedCall,
    args_of,
    aten,
    buffer,
    call,
    derived_name,
    finish,
    parameter,
    rank_of,
    shape_of,
    value_of,
    weighted_call,
)
from passes.provenance import FeatureColumns
from passes.sum_of_terms import SumOfTerms, read_sum

RULE = "row terms"
ROWS_PER_BLOCK = 8_192


class RowTerms(GraphPass):
    """Replaces the terms of a logit by one number per looked-up row and products that start from one another."""

    after = ("MergeLinears",)
    """It reads the terms of a logit as Linears of one output."""

    def rewrite(self, graph_module: GraphModule) -> None:
        finish(graph_module)
        done: set[Node] = set()
        for node in reversed(list(graph_module.graph.nodes)):
            if node in done or any(user in done for user in node.users):
                continue
            columns = FeatureColumns(graph_module)
            terms = read_sum(graph_module, columns, node)
            if terms is not None:
                done.update(terms.inside)
                rows = _take_rows(graph_module, columns, terms)
                if rows:
                    with graph_module.graph.inserting_before(node):
                        node.replace_all_uses_with(_emit_sum(graph_module, columns, node, terms, rows))


@dataclass
class RowTerm:
    """What one id adds: weighted sums of rows of tables, and of such rows squared; named after the first table."""

    index: Node
    name: str
    summed: list[tuple[float, Tensor]] = field(default_factory=list)
    squared: list[tuple[float, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def table(self, constant: float) -> Tensor:
        """[rows, 1]: the number of every row."""
        first = self.summed[0][1]
        rows = max(table.shape[0] for _, table in (*self.summed, *self.squared))
        result = torch.zeros((rows, 1), dtype=first.dtype, device=first.device)
        for start in range(0, rows, ROWS_PER_BLOCK):
            count = min(ROWS_PER_BLOCK, rows - start)
            block = torch.full((count, 1), constant, dtype=torch.float64, device=first.device)
            for terms, power in ((self.summed, 1), (self.squared, 2)):
                for weight, table in terms:
                    part = table[start : start + ROWS_PER_BLOCK].double().pow(power).sum(1, keepdim=True)
                    block[: part.shape[0]] += weight * part
            result[start : start + ROWS_PER_BLOCK] = block
        return result


def _take_rows(module: GraphModule, columns: FeatureColumns, terms: SumOfTerms) -> list[RowTerm]:
    """Moves linear weights and squares that are whole lookups of one id out of the terms; none without squares."""
    rows: dict[Node, RowTerm] = {}
    squares: list[tuple[float, list[WeightedCall]]] = []
    kept: list[tuple[float, Node]] = []
    for weight, node in terms.terms:
        lookups = _whole_lookups(module, columns, node)
        if lookups is None or any(lookup.weight.shape[1] != 1 for lookup in lookups):
            kept.append((weight, node))
            continue
        for lookup in lookups:
            rows.setdefault(lookup.source, RowTerm(lookup.source, lookup.name)).summed.append((weight, lookup.weight))
    rest = list[tuple[float, Node]]()
    for weight, node in kept:
        lookups = _whole_lookups(module, columns, _squared(node)) if len(node.users) == 1 else None
        if lookups is None or any(lookup.source not in rows for lookup in lookups):
            rest.append((weight, node))
        else:
            squares.append((weight, lookups))
    if not squares:
        return []
    for weight, lookups in squares:
        for lookup in lookups:
            rows[lookup.source].squared.append((weight, lookup.weight))
    terms.terms = rest
    return list(rows.values())


def _squared(node: Node) -> Node | None:
    """What a node is the square of."""
    if node.target is aten.square.default or (node.target is aten.pow.Tensor_Scalar and args_of(node)[1] == 2):
        return args_of(node)[0]  # type: ignore[no-any-return]
    if node.target is aten.mul.Tensor and args_of(node)[0] is args_of(node)[1]:
        return args_of(node)[0]  # type: ignore[no-any-return]
    return None


def _whole_lookups(module: GraphModule, columns: FeatureColumns, node: Node | None) -> list[WeightedCall] | None:
    """The lookups of one id per row that a node's features are, each whole and once."""
    wanted = columns.of(node)
    if wanted is None:
        return None
    which, places = columns.sources(wanted.reshape(-1))
    lookups: list[WeightedCall] = []
    for number in dict.fromkeys(which.tolist()):
        lookup = weighted_call(module, columns.node(int(number)), aten.embedding.default)
        width = 0 if lookup is None else lookup.weight.shape[1]
        mine = sorted(places[which == number].tolist())
        if lookup is None or columns.trailing(lookup.node) not in ((1, width), (width,)) or mine != list(range(width)):
            return None
        lookups.append(lookup)
    return lookups


def _emit_sum(module: GraphModule, columns: FeatureColumns, root: Node, terms: SumOfTerms, rows: list[RowTerm]) -> Node:
    """The sum, term by term: one lookup per id (the constant stands in the rows of the first), then products."""
    like, constant, products = value_of(root), terms.constant, list[tuple[Node, Node]]()

    def emit(target: Callable[..., Any], *args: Any) -> Node:
        return call(module.graph, target, *args, rule=RULE, like=root)

    others = list[Node]()
    for weight, node in terms.terms:
        linear = weighted_call(module, node, aten.linear.default) if rank_of(node) == 2 else None
        if linear is not None and len(linear.weight) == 1 and len(node.users) == 1:
            constant += 0.0 if linear.bias is None else weight * float(linear.bias.detach())
            matrix = (weight * linear.weight.detach()).mT.contiguous()
            name = derived_name(linear.name, "term")
            products.append((linear.source, parameter(module, name, matrix, rule=RULE)))
        elif columns.trailing(node) == (1,):
            others.append(node if weight == 1.0 else emit(aten.mul.Tensor, node, weight))
        else:
            count = math.prod((shape_of(node) or ())[1:])
            flat = node if rank_of(node) == 2 else emit(aten.reshape.default, node, [-1, count])
            ones = torch.full((count, 1), weight, dtype=like.dtype, device=like.device)
            products.insert(0, (flat, buffer(module, "term_weights", ones, rule=RULE)))
    pieces = []
    for position, term in enumerate(rows):
        trainable = any(table.requires_grad for _, table in term.summed)
        values = term.table(0.0 if position else constant)
        table = parameter(module, derived_name(term.name, "row_term"), values, rule=RULE, trainable=trainable)
        piece = emit(aten.embedding.default, table, term.index)
        pieces.append(emit(aten.unsqueeze.default, piece, 1) if rank_of(piece) == 2 else piece)
    together = emit(aten.cat.default, pieces, 1) if len(pieces) > 1 else pieces[0]
    total = emit(aten.sum.dim_IntList, together, [1])
    for node in others:
        total = emit(aten.add.Tensor, total, node)
    for source, matrix in products:
        total = emit(aten.addmm.default, total, source, matrix)
    return total
