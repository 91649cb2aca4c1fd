"""Stores what one id adds to a logit as one number per row.

A factorization machine's logit is ``b + sum_f l_f(x_f) + 1/2 |sum_f e_f(x_f)|^2 - 1/2 sum_f |e_f(x_f)|^2 + ...``. Two of its
terms are sums over fields of something that a row knows by itself: the linear weight ``l_f`` and half the squared norm of
the embedding (or of its code). Both, and the constant ``b``, become one number per row, computed once.

Replaces ``sum_f l_f(x_f) + c sum_f |e_f(x_f)|^2 + b``  with ``sum_f t_f(x_f)``,  ``t_f = l_f + c |e_f|^2 (+ b in one field)``,
         ``s sum(x^2)``, ``s W x`` and other terms      with products that start from the terms before them (``addmm``).

Only where the linear term is there already, so that no table becomes wider.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from passes.assemble import Assembler
from passes.feature_columns import Columns, FeatureColumns
from passes.graph_tools import aten, buffer, call, constant_of, derived_name, finish, parameter, shape_of, value_of
from passes.serving_cost import cost_of
from passes.sum_of_terms import SumOfTerms, read_sum

RULE = "row terms"
ROWS_PER_BLOCK = 65_536


class RowTerms(PassBase):
    """Replaces the terms of a logit by one number per looked-up row and products that start from one another."""

    def call(self, graph_module: GraphModule) -> PassResult:
        changed = False
        done: set[Node] = set()
        for node in reversed(list(graph_module.graph.nodes)):
            if node in done or not node.users:
                continue
            columns = FeatureColumns(graph_module)
            terms = read_sum(graph_module, columns, node)
            if terms is None or any(user in done for user in node.users):
                continue
            done.update(terms.inside)
            changed |= _rewrite(graph_module, columns, node, terms)
        finish(graph_module)
        return PassResult(graph_module, changed)


@dataclass
class _RowTerm:
    """What one id adds.

    Attributes:
        index: the ids.
        width_one: (weight, table) whose rows are summed.
        squared: (weight, table) whose rows' squares are summed.
        name: the name of the first summed table.
        like: a lookup that it replaces.
    """

    index: Node
    like: Node
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
            block = torch.full((min(ROWS_PER_BLOCK, rows - start), 1), constant, dtype=torch.float64, device=first.device)
            for weight, table in self.summed:
                part = table[start : start + ROWS_PER_BLOCK].double().sum(1, keepdim=True)
                block[: part.shape[0]] += weight * part
            for weight, table in self.squared:
                part = table[start : start + ROWS_PER_BLOCK].double().square().sum(1, keepdim=True)
                block[: part.shape[0]] += weight * part
            result[start : start + ROWS_PER_BLOCK] = block
        return result


def _rewrite(module: GraphModule, columns: FeatureColumns, root: Node, terms: SumOfTerms) -> bool:
    before = [node for node in terms.inside if not columns.is_move(node)]
    rows = _row_terms(module, columns, terms)
    if len(terms.squares) + len(terms.columns) == 0 or any(abs(weight) == 0 for weight, _ in terms.others):
        return False
    made: list[Node] = []
    with module.graph.inserting_before(root):
        result = _emit(module, columns, root, terms, rows, made)
    if result is None or (not rows and not cost_of(columns, made).beats(cost_of(columns, before))):
        for node in reversed(made):
            module.graph.erase_node(node)
        return False
    root.replace_all_uses_with(result)
    return True


def _row_terms(module: GraphModule, columns: FeatureColumns, terms: SumOfTerms) -> list[_RowTerm]:
    """Moves the columns and squares that are whole lookups of one id out of the terms."""
    found: dict[Node, _RowTerm] = {}
    for position, (weight, wanted) in reversed(list(enumerate(terms.columns))):
        lookups = _whole_lookups(module, columns, wanted)
        if lookups is None or any(constant_of(module, each.args[0]).shape[1] != 1 for each in lookups):
            continue
        for lookup in lookups:
            index = lookup.args[1]
            term = found.setdefault(index, _RowTerm(index, lookup, str(lookup.args[0].target)))
            term.summed.append((weight, constant_of(module, lookup.args[0])))
        del terms.columns[position]
    for position, (weight, wanted) in reversed(list(enumerate(terms.squares))):
        lookups = _whole_lookups(module, columns, wanted)
        if lookups is None or not all(lookup.args[1] in found for lookup in lookups):
            continue
        for lookup in lookups:
            found[lookup.args[1]].squared.append((weight, constant_of(module, lookup.args[0])))
        del terms.squares[position]
    return list(found.values())


def _whole_lookups(module: GraphModule, columns: FeatureColumns, wanted: Columns) -> list[Node] | None:
    """The lookups of one id per row that the columns are, each whole and once."""
    which, places = columns.sources(wanted)
    lookups: list[Node] = []
    for number in dict.fromkeys(which.tolist()):
        node = columns.node(int(number))
        if node.op != "call_function" or node.target is not aten.embedding.default:
            return None
        table = constant_of(module, node.args[0])
        mine = sorted(places[which == number].tolist())
        if table is None or columns.trailing(node) not in ((1, table.shape[1]), (table.shape[1],)):
            return None
        if mine != list(range(table.shape[1])):
            return None
        lookups.append(node)
    return lookups


def _emit(
    module: GraphModule, columns: FeatureColumns, root: Node, terms: SumOfTerms, rows: list[_RowTerm], made: list[Node]
) -> Node | None:
    """The sum as a chain; None where a term does not fit."""
    graph, constant = module.graph, terms.constant
    assembler = Assembler(module, columns, RULE)

    def emit(target: object, *args: object) -> Node:
        node = call(graph, target, *args, rule=RULE, like=root)  # type: ignore[arg-type]
        made.append(node)
        return node

    def weights(count: int, weight: float) -> Node:
        value = torch.full((count, 1), weight, dtype=value_of(root).dtype, device=value_of(root).device)
        return buffer(module, "term_weights", value, rule=RULE)

    products = []
    for weight, linear in terms.linears:
        given = constant_of(module, linear.args[2]) if len(linear.args) > 2 and linear.args[2] is not None else None
        constant += weight * (0.0 if given is None else float(given.detach()))
        matrix = constant_of(module, linear.args[1])
        if matrix is None:
            return None
        name = derived_name(str(linear.args[1].target), "term")
        products.append((linear.args[0], name, (weight * matrix.detach()).mT.contiguous()))
    total: Node | None = None
    if rows:
        pieces = []
        for term in rows:
            name = derived_name(term.name, "row_term")
            trainable = any(table.requires_grad for _, table in term.summed)
            table = parameter(module, name, term.table(constant), rule=RULE, trainable=trainable)
            constant = 0.0
            piece = call(graph, aten.embedding.default, table, term.index, rule=RULE, like=term.like)
            made.append(piece)
            if len(shape_of(piece) or ()) == 2:
                piece = emit(aten.unsqueeze.default, piece, 1)
            pieces.append(piece)
        total = emit(aten.sum.dim_IntList, emit(aten.cat.default, pieces, 1) if len(pieces) > 1 else pieces[0], [1])
    for weight, node in terms.others:
        scaled = node if weight == 1.0 else emit(aten.mul.Tensor, node, weight)
        total = scaled if total is None else emit(aten.add.Tensor, total, scaled)
    for weight, wanted in (*terms.columns, *terms.squares):
        square = any(wanted is each for _, each in terms.squares)
        known = len(assembler.nodes)
        source = assembler.assemble(wanted, root)
        made.extend(assembler.nodes[known:])
        if square:
            source = emit(aten.mul.Tensor, source, source)
        if total is None:
            total = emit(aten.mm.default, source, weights(len(wanted), weight))
        else:
            total = emit(aten.addmm.default, total, source, weights(len(wanted), weight))
    for source, name, matrix in products:
        transposed = parameter(module, name, matrix, rule=RULE)
        if total is None:
            total = emit(aten.mm.default, source, transposed)
        else:
            total = emit(aten.addmm.default, total, source, transposed)
    if constant and total is not None:
        total = emit(aten.add.Tensor, total, constant)
    return total
