"""The one table of laws: what every operator does to low-rank features.

The table drives the analysis, the rewrite and the explanation alike: the rewrite asks it what to do with a node, and
the analysis is the rewrite on a throw-away copy. An operator that is not in the table needs the features themselves
and is reported as unknown: unknown is never assumed harmless.

| law | what it means for features written as codes |
|---|---|
| MOVE | moved, not mixed: done to the code instead |
| LINEAR | absorbed into constants; sums are done on the codes |
| GATE | scaled by one number for all features of a code: the code is scaled, the offset's 1 carried along |
| QUADRATIC | products of features that end in whole inner products: done on codes where one decoder serves both |
| INTERACTION | features are multiplied with features: decoded once, just before |
| NONLINEAR | every feature is bent on its own or set against the others: decoded just before |
| UNKNOWN | no law is known: decoded just before |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch.fx import Node
from torch.utils import _pytree as pytree

from passes import (
    absorb,
    contractions,
    gates,
    masks,
    moves,
    quadratic,
    sums,
)
from passes.graph_tools import aten
from passes.need_features import BENDS, MULTIPLIES, NEED_FEATURES
from passes.outcomes import Law, Rule, Values
from passes.products import Product
from passes.subgraphs import runs_subgraphs


@dataclass(frozen=True)
class Entry:
    """One operator's law.

    Attributes:
        law: how it treats features.
        rule: what it becomes on codes; None where it needs the features themselves.
        reason: why it needs them, one sentence without our vocabulary.
    """

    law: Law
    rule: Rule | None = None
    reason: str = ""


UNKNOWN = Entry(Law.UNKNOWN, None, "no law is known for this operator, so nothing is assumed about it")
SUBGRAPH = Entry(Law.UNKNOWN, None, "it is a branch or a loop, and what runs inside takes the features themselves")
OUTPUT = Entry(Law.OUTPUT, None, "the model returns these features")

_NO_VALUES: Values = MappingProxyType({})
_TABLE: dict[Any, Entry] = {}


def register(target: Callable[..., Any], law: Law | str, rule: Rule | None = None, reason: str = "") -> None:
    """Gives an operator a law (or another one).

    Args:
        target: what ``node.target`` is, for example ``torch.ops.aten.relu.default``.
        law: the law; MOVE and LINEAR need a rule.
        rule: builds the operator's counterpart on codes.
        reason: why the features themselves are needed, for laws without a rule.

    Raises:
        ValueError: MOVE or LINEAR without a rule.
    """
    law = Law(law)
    if rule is None and law in (Law.MOVE, Law.LINEAR):
        raise ValueError(f"law '{law}' of {target} needs a rule that builds its counterpart on codes")
    _TABLE[target] = Entry(law, rule, reason or _REASONS.get(law, UNKNOWN.reason))
    for special in (_OF_TWO, _OF_PRODUCTS):
        special.pop(target, None)


def law_of(node: Node, values: Values = _NO_VALUES) -> Entry:
    """The law of a node's operator for operands with the given values.

    Most operators have one law. Some have another for two low-rank operands (a product is then no gate), and for
    products of features that are not summed up yet.
    """
    if node.op == "output":
        return OUTPUT
    if runs_subgraphs(node):
        return SUBGRAPH
    entry = _TABLE.get(node.target, UNKNOWN)
    operands = [values[each] for each in _operands(node) if each in values]
    if any(isinstance(value, Product) for value in operands):
        return _OF_PRODUCTS.get(node.target, replace(entry, rule=None))
    return _OF_TWO.get(node.target, entry) if len(operands) > 1 else entry


def _operands(node: Node) -> list[Node]:
    """The tensors that a node takes, one that it takes twice twice."""
    return [leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)]


def table() -> dict[str, Entry]:
    """All laws by operator name, for documentation."""
    return _by_name(_TABLE)


def tables() -> dict[str, dict[str, Entry]]:
    """All laws by what the operands are, and by operator name, for documentation; first those of :func:`table`."""
    return {
        "one low-rank operand": table(),
        "two low-rank operands": _by_name(_OF_TWO),
        "products of features that are not summed up yet": _by_name(_OF_PRODUCTS),
    }


def _by_name(entries: dict[Any, Entry]) -> dict[str, Entry]:
    return {str(target): entry for target, entry in entries.items()}


_REASONS = {Law.NONLINEAR: BENDS, Law.INTERACTION: MULTIPLIES}

_LINEAR: dict[Any, Rule] = {aten.linear.default: absorb.linear, **sums.LAWS, **contractions.LAWS}

_GATES: dict[Any, Rule] = {
    aten.mul.Tensor: gates.multiply,
    aten.div.Tensor: gates.divide,
    aten.where.self: masks.where,
    aten.where.ScalarOther: masks.where,
    aten.where.ScalarSelf: masks.where,
    aten.masked_fill.Scalar: masks.masked_fill,
    aten.masked_fill.Tensor: masks.masked_fill,
}

_OF_TWO: dict[Any, Entry] = {aten.mul.Tensor: Entry(Law.QUADRATIC, quadratic.multiply)}
"""Laws of operators whose operands are both low-rank."""

_SQUARES: dict[Any, Rule] = {aten.pow.Tensor_Scalar: quadratic.power, aten.square.default: quadratic.power}

_OF_PRODUCTS: dict[Any, Entry] = {
    target: Entry(Law.QUADRATIC, rule)
    for target, rule in {
        aten.sum.dim_IntList: quadratic.reduce,
        aten.sum.default: quadratic.reduce,
        aten.mean.dim: quadratic.reduce,
        aten.mean.default: quadratic.reduce,
        aten.mul.Tensor: quadratic.scale,
        aten.div.Tensor: quadratic.scale,
        aten.neg.default: quadratic.scale,
        aten.add.Tensor: quadratic.add,
        aten.sub.Tensor: quadratic.add,
        aten.view.default: quadratic.reshape,
        aten.reshape.default: quadratic.reshape,
        aten.squeeze.default: quadratic.reshape,
        aten.squeeze.dim: quadratic.reshape,
        aten.squeeze.dims: quadratic.reshape,
        aten.unsqueeze.default: quadratic.reshape,
    }.items()
}
"""Laws of operators for products of features that are not summed up yet."""

for _target, _rule in moves.LAWS.items():
    _TABLE[_target] = Entry(Law.MOVE, _rule)
for _target, _rule in _LINEAR.items():
    _TABLE[_target] = Entry(Law.LINEAR, _rule)
for _target, _rule in _GATES.items():
    _TABLE[_target] = Entry(Law.GATE, _rule)
for _target, _rule in _SQUARES.items():
    _TABLE[_target] = Entry(Law.QUADRATIC, _rule)
for (_law, _reason), _targets in NEED_FEATURES.items():
    for _target in _targets:
        _TABLE[_target] = Entry(_law, None, _reason)
