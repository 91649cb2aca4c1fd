"""Stores what one id adds to a logit as one number per row.

A factorization machine's logit is ``b + sum_f l_f(x_f) + 1/2 |sum_f e_f(x_f)|^2 - 1/2 sum_f |e_f(x_f)|^2 + ...``.
Two of its terms are sums over fields of something that a row knows by itself: the linear weight ``l_f`` and half the
squared norm of the embedding (or of its code). Both, and the constant ``b``, become one number per row, computed once.

Replaces ``sum_f l_f(x_f) + c sum_f |e_f(x_f)|^2 + b``  with ``sum_f t_f(x_f)``, ``t_f = l_f + c |e_f|^2`` (in one field
                                                        ``+ b``),
         ``s sum(x)``, ``s W x`` and other terms        with products that start from the terms before (``addmm``).

Only where the linear term is there already and nothing else reads it, so that no table becomes wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph import (
    FeatureColumns,
    GraphPass,
    WeightedCall,
    args_of,
    aten,
    buffer,
    call,
    constant_of,
    derived_name,
    finish,
    is_read_by,
    parameter,
    rank_of,
    same_form,
    shape_of,
    value_of,
    weighted_call,
)

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
            if not _is_sum(columns, node):
                continue
            terms = _Sum(graph_module, columns, node)
            done |= terms.inside
            if rows := _take_rows(terms):
                with graph_module.graph.inserting_before(node):
                    node.replace_all_uses_with(_emit_sum(node, terms, list(rows.values())))


class _Sum:
    """A tree of additions of single features, read as a constant and weighted sums of all features of nodes.

    ``add``, ``sub``, ``neg``, multiplication by a number and sums over features are taken apart. A logit is such a sum:
    bias, linear term, pairwise term, deep part.
    """

    def __init__(self, module: GraphModule, columns: FeatureColumns, root: Node) -> None:
        self.module, self.columns = module, columns
        self.constant = 0.0
        self.terms: list[tuple[float, Node]] = []
        self.inside: set[Node] = {root}
        self._add(root, 1.0)

    def _add(self, node: Node, weight: float) -> None:
        """Adds ``weight`` times the sum of all features of a node."""
        parts = self._parts(node, weight) if node in self.inside or len(node.users) == 1 else None
        if parts is None:
            self.terms.append((weight, node))
            return
        self.inside.add(node)
        for part, factor in parts:
            self._add(part, factor)

    def _parts(self, node: Node, weight: float) -> list[tuple[Any, float]] | None:
        """What the sum of a node's features is the sum of; constants are added on the way."""
        if node.op != "call_function" or node.kwargs:
            return None
        target = node.target
        if target in (aten.add.Tensor, aten.sub.Tensor):
            return self._added(node, weight)
        if target is aten.neg.default:
            return [(args_of(node)[0], -weight)]
        if target is aten.mul.Tensor:
            return self._scaled(node, weight)
        if target is aten.sum.dim_IntList:
            source, axes = args_of(node)[:2]
            trailing = self.columns.trailing(source)
            if trailing is not None and axes and all(axis % (len(trailing) + 1) for axis in axes):
                return [(source, weight)]
        return None

    def _added(self, node: Node, weight: float) -> list[tuple[Node, float]] | None:
        parts: list[tuple[Node, float]] = []
        constant = 0.0
        signs = (weight, -weight if node.target is aten.sub.Tensor else weight)
        for operand, signed in zip(args_of(node), signs, strict=True):
            value = self._constant(operand, node)
            if value is not None:
                constant += signed * value
            elif isinstance(operand, Node) and same_form(operand, node):
                parts.append((operand, signed))
            else:
                return None
        self.constant += constant
        return parts

    def _scaled(self, node: Node, weight: float) -> list[tuple[Node, float]] | None:
        left, right = args_of(node)[:2]
        for one, other in ((left, right), (right, left)):
            if isinstance(other, Node) and isinstance(one, (int, float)):
                return [(other, weight * float(one))]
            tensor = constant_of(self.module, one) if isinstance(other, Node) else None
            if tensor is not None and tensor.numel() == 1 and not tensor.requires_grad and same_form(other, node):
                return [(other, weight * float(tensor))]
        return None

    def _constant(self, operand: Any, like: Node) -> float | None:
        """The sum over all features of a constant term, which may broadcast."""
        features: int = math.prod((shape_of(like) or ())[1:])
        if isinstance(operand, (int, float)):
            return float(operand) * features
        tensor = constant_of(self.module, operand)
        if tensor is None or not tensor.is_floating_point():
            return None
        shape = (1, *(shape_of(like) or ())[1:])
        try:
            total: Tensor = tensor.detach().double().expand(shape).sum()
            return float(total)
        except RuntimeError:
            return None


def _is_sum(columns: FeatureColumns, node: Node) -> bool:
    """Whether a node adds up two tensors of one float feature."""
    added = node.op == "call_function" and node.target in (aten.add.Tensor, aten.sub.Tensor)
    return added and columns.trailing(node) == (1,) and value_of(node).is_floating_point()


RowTerm = list[tuple[float, int, WeightedCall]]
"""What one id adds: (weight, power, lookup): ``weight`` times the sum of the looked-up row to that power."""


@torch.no_grad()
def _numbers(term: RowTerm, constant: float) -> Tensor:
    """[rows, 1]: what every row adds."""
    first = term[0][2].weight
    rows = max(len(lookup.weight) for _, _, lookup in term)
    result = torch.zeros((rows, 1), dtype=first.dtype, device=first.device)
    for start in range(0, rows, ROWS_PER_BLOCK):
        count = min(ROWS_PER_BLOCK, rows - start)
        block = torch.full((count, 1), constant, dtype=torch.float64, device=first.device)
        for weight, power, lookup in term:
            part = lookup.weight[start : start + ROWS_PER_BLOCK].double().pow(power).sum(1, keepdim=True)
            block[: len(part)] += weight * part
        result[start : start + ROWS_PER_BLOCK] = block
    return result


def _take_rows(terms: _Sum) -> dict[Node, RowTerm]:
    """Moves linear weights and squares that are whole lookups of one id out of the terms; none without squares."""
    rows: dict[Node, RowTerm] = {}
    rest: list[tuple[float, Node]] = []
    any_squares = False
    for weight, node in terms.terms:
        lookups = _whole_lookups(terms, node)
        if lookups is None or any(lookup.weight.shape[1] != 1 for lookup in lookups):
            rest.append((weight, node))
            continue
        for lookup in lookups:
            rows.setdefault(lookup.source, []).append((weight, 1, lookup))
    for weight, node in list(rest):
        lookups = _whole_lookups(terms, squared(node)) if len(node.users) == 1 else None
        if lookups is not None and all(lookup.source in rows for lookup in lookups):
            rest.remove((weight, node))
            any_squares = True
            for lookup in lookups:
                rows[lookup.source].append((weight, 2, lookup))
    if not any_squares or _rows_of(rows) > _rows_that_go(rows):
        return {}
    terms.terms = rest
    return rows


def _rows_of(rows: dict[Node, RowTerm]) -> int:
    """How many numbers are made."""
    return sum(max(len(lookup.weight) for _, _, lookup in term) for term in rows.values())


def _rows_that_go(rows: dict[Node, RowTerm]) -> int:
    """How many numbers of linear terms nothing reads afterwards."""
    lookups = [lookup for term in rows.values() for _, power, lookup in term if power == 1]
    tables = {lookup.weight_node: len(lookup.weight) for lookup in lookups}
    readers = {lookup.node for lookup in lookups}
    return sum(count for table, count in tables.items() if is_read_by(table, readers))


def squared(node: Node) -> Node | None:
    """What a node is the square of, None where it is none."""
    if node.target is aten.square.default or (node.target is aten.pow.Tensor_Scalar and args_of(node)[1] == 2):
        return args_of(node)[0]  # type: ignore[no-any-return]
    if node.target is aten.mul.Tensor and args_of(node)[0] is args_of(node)[1]:
        return args_of(node)[0]  # type: ignore[no-any-return]
    return None


def _whole_lookups(terms: _Sum, node: Node | None) -> list[WeightedCall] | None:
    """The lookups of one id per row that a node's features are, each whole and once."""
    columns = terms.columns
    wanted = columns.of(node)
    if wanted is None:
        return None
    which, places = columns.sources(wanted.reshape(-1))
    lookups: list[WeightedCall] = []
    for number in dict.fromkeys(which.tolist()):
        lookup = weighted_call(terms.module, columns.node(int(number)), aten.embedding.default)
        width = 0 if lookup is None else lookup.weight.shape[1]
        mine = sorted(places[which == number].tolist())
        if lookup is None or columns.trailing(lookup.node) not in ((1, width), (width,)) or mine != list(range(width)):
            return None
        lookups.append(lookup)
    return lookups


def _emit_sum(root: Node, terms: _Sum, rows: list[RowTerm]) -> Node:
    """The sum, term by term: one lookup per id (the constant stands in the rows of the first), then products."""
    module, columns = terms.module, terms.columns
    like, constant, products = value_of(root), terms.constant, list[tuple[Node, Node]]()

    def emit(target: Callable[..., Any], *args: Any) -> Node:
        return call(module.graph, target, *args, rule=RULE, like=root)

    others = list[Node]()
    for weight, node in terms.terms:
        linear = weighted_call(module, node, aten.linear.default) if rank_of(node) == 2 else None
        if linear is not None and len(linear.weight) == 1 and len(node.users) == 1 and linear.is_only_reader:
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
        trainable = any(lookup.weight.requires_grad for _, power, lookup in term if power == 1)
        values = _numbers(term, 0.0 if position else constant)
        name = derived_name(term[0][2].name, "row_term")
        table = parameter(module, name, values, rule=RULE, trainable=trainable)
        piece = emit(aten.embedding.default, table, term[0][2].source)
        pieces.append(emit(aten.unsqueeze.default, piece, 1) if rank_of(piece) == 2 else piece)
    together = emit(aten.cat.default, pieces, 1) if len(pieces) > 1 else pieces[0]
    total = emit(aten.sum.dim_IntList, together, [1])
    for node in others:
        total = emit(aten.add.Tensor, total, node)
    for source, factor in products:
        total = emit(aten.addmm.default, total, source, factor)
    return total
