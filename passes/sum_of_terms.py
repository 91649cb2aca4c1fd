"""Reads a tree of additions of single features as one sum of terms.

``add``, ``sub``, ``neg``, multiplication by a number, sums over all features and everything that only moves are taken
apart, down to weighted sums of a node's features. A logit is such a sum: bias, linear term, pairwise term, deep part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph_tools import args_of, aten, constant_of, same_form, shape_of, value_of
from passes.provenance import FeatureColumns


@dataclass
class SumOfTerms:
    """A sum.

    Attributes:
        constant: the terms that are the same for every row.
        terms: (weight, node): ``weight`` times the sum of all features of a node.
        inside: the nodes that only add up, scale or move.
    """

    constant: float = 0.0
    terms: list[tuple[float, Node]] = field(default_factory=list)
    inside: list[Node] = field(default_factory=list)


def read_sum(module: GraphModule, columns: FeatureColumns, root: Node) -> SumOfTerms | None:
    """The sum that a node of one feature is; None where it adds nothing up."""
    if not _is_sum_operator(root) or not _one_feature(columns, root):
        return None
    reader = _Reader(module, columns)
    reader.total(root, 1.0, root=True)
    return reader.result


class _Reader:
    def __init__(self, module: GraphModule, columns: FeatureColumns) -> None:
        self.module, self.columns = module, columns
        self.result = SumOfTerms()

    def total(self, node: Node, weight: float, *, root: bool = False) -> None:
        """Adds ``weight`` times the sum of all features of a node."""
        parts = self._parts(node, weight) if root or len(node.users) == 1 else None
        if parts is None:
            self.result.terms.append((weight, node))
            return
        self.result.inside.append(node)
        for part, factor in parts:
            self.total(part, factor)

    def _parts(self, node: Node, weight: float) -> list[tuple[Any, float]] | None:  # noqa: PLR0911 - one each
        """What the sum of a node's features is the sum of; constants are added on the way."""
        if node.op != "call_function" or node.kwargs:
            return None
        target = node.target
        if target in (aten.add.Tensor, aten.sub.Tensor):
            signs = (1.0, -1.0 if target is aten.sub.Tensor else 1.0)
            return self._terms(node, weight, signs)
        if target is aten.neg.default:
            return [(args_of(node)[0], -weight)]
        if target is aten.mul.Tensor:
            return self._scaled(node, weight)
        if target is aten.sum.dim_IntList:
            source = args_of(node)[0]
            return [(source, weight)] if self._sums_within_rows(node) else None
        if self.columns.is_move(node):
            return self._rearranged(node, weight)
        return None

    def _rearranged(self, node: Node, weight: float) -> list[tuple[Node, float]] | None:
        """The sources of a move that holds all features of each once, where nothing else uses them."""
        wanted = self.columns.of(node)
        if wanted is None:
            return None
        which, places = self.columns.sources(wanted.reshape(-1))
        parts: list[tuple[Node, float]] = []
        for number in dict.fromkeys(which.tolist()):
            source = self.columns.node(int(number))
            features = math.prod((shape_of(source) or ())[1:])
            whole = sorted(places[which == number].tolist()) == list(range(features))
            if not whole or source.op != "call_function" or source.target is aten.embedding.default:
                return None
            parts.append((source, weight))
        behind = self.columns.moves_behind(node) - {node}
        lone = all(len(each.users) == 1 for each in (*behind, *(part for part, _ in parts)))
        return parts if lone else None

    def _terms(self, node: Node, weight: float, signs: tuple[float, float]) -> list[tuple[Node, float]] | None:
        parts: list[tuple[Node, float]] = []
        constant = 0.0
        for operand, sign in zip(args_of(node)[:2], signs, strict=True):
            value = self._constant(operand, node)
            if value is not None:
                constant += sign * value
            elif isinstance(operand, Node) and same_form(operand, node):
                parts.append((operand, sign * weight))
            else:
                return None
        self.result.constant += weight * constant
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

    def _sums_within_rows(self, node: Node) -> bool:
        axes, source = args_of(node)[1], args_of(node)[0]
        rank = len(shape_of(source) or ())
        return (
            isinstance(axes, (list, tuple)) and len(axes) > 0 and 0 not in {axis % rank for axis in axes}
            and self.columns.trailing(source) is not None
        )  # fmt: skip


def _is_sum_operator(node: Node) -> bool:
    return node.op == "call_function" and node.target in (aten.add.Tensor, aten.sub.Tensor)


def _one_feature(columns: FeatureColumns, node: Node) -> bool:
    trailing = columns.trailing(node)
    value = value_of(node)
    return trailing == (1,) and isinstance(value, Tensor) and value.is_floating_point()
