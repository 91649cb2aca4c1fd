"""Stores what one id adds to a logit as one number per row.

A factorization machine's logit is ``b + sum_f l_f(x_f) + 1/2 |sum_f e_f(x_f)|^2 - 1/2 sum_f |e_f(x_f)|^2 + ...``.
Two of its terms are sums over fields of something that a row knows by itself: the linear weight ``l_f`` and half the
squared norm of the embedding (or of its code). Both, and the constant ``b``, become one number per row, computed once.

Replaces ``sum_f l_f(x_f) + c sum_f |e_f(x_f)|^2 + b``  with ``sum_f t_f(x_f)``, ``t_f = l_f + c |e_f|^2`` (in one field
                                                        ``+ b``),
         ``s sum(x^2)``, ``s W x`` and other terms      with products that start from the terms before (``addmm``).

Only where the linear term is there already, so that no table becomes wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.assemble import Assembler
from passes.graph_pass import GraphPass
from passes.graph_tools import (
    WeightedCall,
    aten,
    buffer,
    call,
    derived_name,
    finish,
    parameter,
    shape_of,
    value_of,
    weighted_call,
)
from passes.provenance import Columns, FeatureColumns
from passes.serving_cost import cost_of
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
            if node in done or not node.users:
                continue
            columns = FeatureColumns(graph_module)
            terms = read_sum(graph_module, columns, node)
            if terms is None or any(user in done for user in node.users):
                continue
            done.update(terms.inside)
            _rewrite(graph_module, columns, node, terms)


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


def _rewrite(module: GraphModule, columns: FeatureColumns, root: Node, terms: SumOfTerms) -> None:
    before = [node for node in terms.inside if not columns.is_move(node)]
    rows = _row_terms(module, columns, terms)
    if len(terms.squares) + len(terms.columns) == 0 or any(abs(weight) == 0 for weight, _ in terms.others):
        return
    chain = _Chain(module, columns, root)
    with module.graph.inserting_before(root):
        result = chain.run(terms, rows)
    if result is None or (not rows and not cost_of(chain.made).beats(cost_of(before))):
        for node in reversed(chain.made):
            module.graph.erase_node(node)
    else:
        root.replace_all_uses_with(result)


def _row_terms(module: GraphModule, columns: FeatureColumns, terms: SumOfTerms) -> list[RowTerm]:
    """Moves the columns and squares that are whole lookups of one id out of the terms."""
    found: dict[Node, RowTerm] = {}
    for position, (weight, wanted) in reversed(list(enumerate(terms.columns))):
        lookups = _whole_lookups(module, columns, wanted)
        if lookups is None or any(lookup.weight.shape[1] != 1 for lookup in lookups):
            continue
        for lookup in lookups:
            term = found.setdefault(lookup.source, RowTerm(lookup.source, lookup.name))
            term.summed.append((weight, lookup.weight))
        del terms.columns[position]
    for position, (weight, wanted) in reversed(list(enumerate(terms.squares))):
        lookups = _whole_lookups(module, columns, wanted)
        if lookups is None or not all(lookup.source in found for lookup in lookups):
            continue
        for lookup in lookups:
            found[lookup.source].squared.append((weight, lookup.weight))
        del terms.squares[position]
    return list(found.values())


def _whole_lookups(module: GraphModule, columns: FeatureColumns, wanted: Columns) -> list[WeightedCall] | None:
    """The lookups of one id per row that the columns are, each whole and once."""
    which, places = columns.sources(wanted)
    lookups: list[WeightedCall] = []
    for number in dict.fromkeys(which.tolist()):
        lookup = weighted_call(module, columns.node(int(number)), aten.embedding.default)
        width = 0 if lookup is None else lookup.weight.shape[1]
        mine = sorted(places[which == number].tolist())
        if lookup is None or columns.trailing(lookup.node) not in ((1, width), (width,)) or mine != list(range(width)):
            return None
        lookups.append(lookup)
    return lookups


class _Chain:
    """The sum, emitted term by term: every product starts from the terms before it."""

    def __init__(self, module: GraphModule, columns: FeatureColumns, root: Node) -> None:
        self.module, self.root = module, root
        self.assembler = Assembler(module, columns, RULE)
        self.made: list[Node] = []
        self.total: Node | None = None

    def run(self, terms: SumOfTerms, rows: Sequence[RowTerm]) -> Node | None:
        """Emits all terms and returns the sum."""
        constant = terms.constant
        products = []
        for weight, linear in terms.linears:
            if linear.bias is not None:
                constant += weight * float(linear.bias.detach())
            name = derived_name(linear.name, "term")
            products.append((linear.source, name, (weight * linear.weight.detach()).mT.contiguous()))
        if rows:
            self._rows(rows, constant)
            constant = 0.0
        for weight, node in terms.others:
            scaled = node if weight == 1.0 else self._emit(aten.mul.Tensor, node, weight)
            self.total = scaled if self.total is None else self._emit(aten.add.Tensor, self.total, scaled)
        for weight, wanted in terms.columns:
            self._product(self._assembled(wanted), self._weights(len(wanted), weight))
        for weight, wanted in terms.squares:
            source = self._assembled(wanted)
            self._product(self._emit(aten.mul.Tensor, source, source), self._weights(len(wanted), weight))
        for source, name, matrix in products:
            self._product(source, parameter(self.module, name, matrix, rule=RULE))
        if constant and self.total is not None:
            self.total = self._emit(aten.add.Tensor, self.total, constant)
        return self.total

    def _rows(self, rows: Sequence[RowTerm], constant: float) -> None:
        """One lookup per id, summed over the ids; the constant stands in the rows of the first."""
        pieces = []
        for position, term in enumerate(rows):
            trainable = any(table.requires_grad for _, table in term.summed)
            values = term.table(0.0 if position else constant)
            name = derived_name(term.name, "row_term")
            table = parameter(self.module, name, values, rule=RULE, trainable=trainable)
            piece = self._emit(aten.embedding.default, table, term.index)
            if len(shape_of(piece) or ()) == 2:
                piece = self._emit(aten.unsqueeze.default, piece, 1)
            pieces.append(piece)
        together = self._emit(aten.cat.default, pieces, 1) if len(pieces) > 1 else pieces[0]
        self.total = self._emit(aten.sum.dim_IntList, together, [1])

    def _assembled(self, wanted: Columns) -> Node:
        known = len(self.assembler.nodes)
        source = self.assembler.assemble(wanted, self.root)
        self.made += self.assembler.nodes[known:]
        return source

    def _weights(self, count: int, weight: float) -> Node:
        like = value_of(self.root)
        return buffer(
            self.module, "term_weights", torch.full((count, 1), weight, dtype=like.dtype, device=like.device), rule=RULE
        )

    def _product(self, source: Any, weights: Node) -> None:
        if self.total is None:
            self.total = self._emit(aten.mm.default, source, weights)
        else:
            self.total = self._emit(aten.addmm.default, self.total, source, weights)

    def _emit(self, target: Callable[..., Any], *args: Any) -> Node:
        node = call(self.module.graph, target, *args, rule=RULE, like=self.root)
        self.made.append(node)
        return node
