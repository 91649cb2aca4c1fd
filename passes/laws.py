"""The one table of laws: what every operator does to low-rank features.

The table drives the analysis, the rewrite and the explanation alike: the rewrite asks it what to do with a node, and
the analysis is the rewrite on a throw-away copy. An operator that is not in the table needs the features themselves
and is reported as unknown: unknown is never assumed harmless.

| law | what it means for features written as codes |
|---|---|
| MOVE | moved, not mixed: done to the code instead |
| LINEAR | absorbed into constants; sums are done on the codes |
| GATE | scaled by one number for all features of a code: the code is scaled, the offset's 1 carried along |
| INTERACTION | features are multiplied with features: decoded once, just before |
| NONLINEAR | every feature is bent on its own or set against the others: decoded just before |
| UNKNOWN | no law is known: decoded just before |
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from passes import absorb, gates, moves, sums
from passes.graph_tools import aten
from passes.outcomes import Law, Rule
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


BENDS = "it changes every feature by a curve, which a code does not follow"
SCALES = "it scales every feature by a number of its own, which is done on the features themselves"
NORMALIZES = "it sets every feature against the others (a mean, a maximum, a sum of exponentials)"
MULTIPLIES = "it multiplies features with features, and a product of two codes is not a code"
UNKNOWN = Entry(Law.UNKNOWN, None, "no law is known for this operator, so nothing is assumed about it")
SUBGRAPH = Entry(Law.UNKNOWN, None, "it is a branch or a loop, and what runs inside takes the features themselves")
OUTPUT = Entry(Law.OUTPUT, None, "the model returns these features")

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


def law_of(node: Node) -> Entry:
    """The law of a node's operator."""
    if node.op == "output":
        return OUTPUT
    if runs_subgraphs(node):
        return SUBGRAPH
    return _TABLE.get(node.target, UNKNOWN)


def table() -> dict[str, Entry]:
    """All laws by operator name, for documentation."""
    return {str(target): entry for target, entry in _TABLE.items()}


_REASONS = {Law.NONLINEAR: BENDS, Law.INTERACTION: MULTIPLIES}

_MOVES: dict[Any, Rule] = {
    aten.clone.default: moves.same,
    aten.alias.default: moves.same,
    aten.detach.default: moves.same,
    aten.contiguous.default: moves.same,
    aten.view.default: moves.view,
    aten.reshape.default: moves.view,
    aten._unsafe_view.default: moves.view,
    aten.slice.Tensor: moves.slice_,
    aten.select.int: moves.select,
    aten.unsqueeze.default: moves.unsqueeze,
    aten.squeeze.default: moves.squeeze,
    aten.squeeze.dim: moves.squeeze,
    aten.squeeze.dims: moves.squeeze,
    aten.permute.default: moves.permute,
    aten.transpose.int: moves.permute,
    aten.t.default: moves.permute,
    aten.expand.default: moves.expand,
    aten.repeat.default: moves.repeat,
    aten.cat.default: moves.concatenate,
    aten.stack.default: moves.stack,
    aten.split.Tensor: moves.split,
    aten.split_with_sizes.default: moves.split,
    aten.chunk.default: moves.split,
    aten.unbind.int: moves.split,
    operator.getitem: moves.get_item,
}

_LINEAR: dict[Any, Rule] = {
    aten.linear.default: absorb.linear,
    aten.matmul.default: sums.matrix_product,
    aten.mm.default: sums.matrix_product,
    aten.tensordot.default: sums.contraction,
    aten.add.Tensor: sums.add,
    aten.sub.Tensor: sums.subtract,
    aten.rsub.Scalar: sums.subtract_from,
    aten.sum.dim_IntList: sums.reduce_sum,
    aten.sum.default: sums.reduce_sum,
    aten.mean.dim: sums.reduce_mean,
    aten.mean.default: sums.reduce_mean,
}

_GATES: dict[Any, Rule] = {
    aten.mul.Tensor: gates.multiply,
    aten.div.Tensor: gates.divide,
}

_NEED_FEATURES: dict[tuple[Law, str], tuple[Any, ...]] = {
    (Law.NONLINEAR, BENDS): (
        aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.gelu.default, aten.silu.default,
        aten.leaky_relu.default, aten.prelu.default, aten.elu.default, aten.exp.default, aten.log.default,
        aten.abs.default, aten.clamp.default, aten.pow.Tensor_Scalar, aten.sqrt.default, aten.softplus.default,
        aten.reciprocal.default, aten.hardtanh.default, aten.square.default, aten.rsqrt.default,
    ),
    (Law.NONLINEAR, NORMALIZES): (
        aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.layer_norm.default,
        aten.native_layer_norm.default, aten.max.dim, aten.amax.default,
    ),
    (Law.LINEAR, SCALES): (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default),
    (Law.INTERACTION, MULTIPLIES): (
        aten.bmm.default, aten.einsum.default, aten.conv1d.default, aten.conv2d.default,
        aten.scaled_dot_product_attention.default,
    ),
}  # fmt: skip

for _target, _rule in _MOVES.items():
    register(_target, Law.MOVE, _rule)
for _target, _rule in _LINEAR.items():
    register(_target, Law.LINEAR, _rule)
for _target, _rule in _GATES.items():
    register(_target, Law.GATE, _rule)
for (_law, _reason), _targets in _NEED_FEATURES.items():
    for _target in _targets:
        _TABLE[_target] = Entry(_law, None, _reason)
