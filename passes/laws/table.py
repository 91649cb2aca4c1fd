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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch.fx import Node

from passes.codes import Product
from passes.graph import PassArgumentError, aten, runs_subgraphs
from passes.laws import absorb, contractions, gates, masks, moves, quadratic, sums
from passes.laws.need_features import BENDS, MULTIPLIES, NEED_FEATURES
from passes.laws.outcomes import Law, Rule, Values


@dataclass(frozen=True)
class Entry:
    """One operator's law.

    Attributes:
        rule: what it becomes on codes; None where it needs the features themselves.
        reason: why it needs them, one sentence without our vocabulary.
    """

    law: Law
    rule: Rule | None = None
    reason: str = ""


UNKNOWN = Entry(Law.UNKNOWN, None, "no law is known for this operator, so nothing is assumed about it")
SUBGRAPH = Entry(Law.UNKNOWN, None, "it is a branch or a loop, and what runs inside takes the features themselves")
OUTPUT = Entry(Law.OUTPUT, None, "the model returns these features")


def _entries(law: Law, rules: Mapping[Any, Rule]) -> dict[Any, Entry]:
    return {target: Entry(law, rule) for target, rule in rules.items()}


_TABLE: dict[Any, Entry] = {
    **_entries(Law.MOVE, moves.LAWS),
    **_entries(Law.LINEAR, {aten.linear.default: absorb.linear, **sums.LAWS, **contractions.LAWS}),
    **_entries(Law.GATE, {**gates.LAWS, **masks.LAWS}),
    **_entries(Law.QUADRATIC, quadratic.LAWS),
    **{target: Entry(law, None, reason) for (law, reason), targets in NEED_FEATURES.items() for target in targets},
}
_OF_PRODUCTS: dict[Any, Entry] = _entries(Law.QUADRATIC, quadratic.LAWS_OF_PRODUCTS)
_REASONS = {Law.NONLINEAR: BENDS, Law.INTERACTION: MULTIPLIES}


def register(target: Callable[..., Any], law: Law | str, rule: Rule | None = None, reason: str = "") -> None:
    """Gives an operator a law (or another one).

    Args:
        target: what ``node.target`` is, for example ``torch.ops.aten.relu.default``.
        law: the law; MOVE and LINEAR need a rule.
        reason: why the features themselves are needed, for laws without a rule.

    Raises:
        PassArgumentError: no such law, or MOVE or LINEAR without a rule.
    """
    if law not in list(Law):
        raise PassArgumentError(f"a law is one of {', '.join(Law)}, got {law!r}")
    law = Law(law)
    if rule is None and law in (Law.MOVE, Law.LINEAR):
        raise PassArgumentError(f"law '{law}' of {target} needs a rule that builds its counterpart on codes")
    _TABLE[target] = Entry(law, rule, reason or _REASONS.get(law, UNKNOWN.reason))
    _OF_PRODUCTS.pop(target, None)


def law_of(node: Node, values: Values = MappingProxyType({})) -> Entry:
    """The law of a node's operator for operands with the given values; some have another for products of features."""
    if node.op == "output":
        return OUTPUT
    if runs_subgraphs(node):
        return SUBGRAPH
    entry = _TABLE.get(node.target, UNKNOWN)
    if any(isinstance(values.get(operand), Product) for operand in node.all_input_nodes):
        return _OF_PRODUCTS.get(node.target, replace(entry, rule=None))
    return entry


def tables() -> dict[str, dict[str, Entry]]:
    """All laws by what the operands are, and by operator name, for documentation."""
    return {
        "one low-rank operand": _by_name(_TABLE),
        "products of features that are not summed up yet": _by_name(_OF_PRODUCTS),
    }


def _by_name(entries: dict[Any, Entry]) -> dict[str, Entry]:
    return {str(target): entry for target, entry in entries.items()}
