"""LINEAR: products of features with something else, written as sums over labelled axes (``einsum``, ``bmm``, ``mm``).

With ``y = A z + o`` along the feature axis e, two cases stay linear:

*   the other operand is a constant that is contracted along e: replaces ``sum_e w_he y_e`` with ``(w A) z + w o``,
    an absorbed Linear, or a decoder per field where the decoders or the constants differ from field to field;
*   the other operand, constant or not, does not have the axis e: replaces ``sum_k w_qk y_k`` with
    ``A (sum_k w_qk z_k) + o (sum_k w_qk)``. The code is contracted, with a column of ones for the offset beside it.
    This is what attention does to its values: ``softmax(q k^T) (A z + o)`` becomes ``A (softmax(q k^T) z)`` and ``o``
    times the sum of the weights (0 for a query that may look at nothing).
"""

from __future__ import annotations

import functools
import math
import string
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx import Node

from passes.codes import CodeBuilder, LowRankValue
from passes.graph import aten, shape_of, value_of
from passes.laws import absorb
from passes.laws.absorb import Affine
from passes.laws.common_form import through_lead
from passes.laws.gates import gated
from passes.laws.moves import MIXED_AXES, OTHER_DTYPE, on_features
from passes.laws.need_features import MULTIPLIES
from passes.laws.outcomes import Absorbed, Carried, Law, Outcome, Restored, Values

EVERY_FIELD = "every result mixes the codes of all fields, so none of them would have a shorter code"
REPEATS = "it sums features along axes, or takes diagonals, while it multiplies them"
MANY = "it multiplies more than two tensors at once"
EVERY_POSITION = "its values have a different decoder at every position"
DROPOUT = "it drops attention weights at random"
ORDER = "it puts the features in front of other axes"


@dataclass(frozen=True)
class Labels:
    """One letter per axis: ``own`` of the low-rank operand, ``other`` of the other one, ``out`` of the result."""

    own: str
    other: str
    out: str

    @property
    def are_simple(self) -> bool:
        """Whether no axis is summed on its own or read twice."""
        single = all(len(set(each)) == len(each) for each in (self.own, self.other, self.out))
        kept = set(self.own) ^ set(self.other)
        return single and kept <= set(self.out) and set(self.out) <= set(self.own) | set(self.other)


def einsum(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``einsum`` of two operands."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if not isinstance(operands, (list, tuple)) or len(operands) != 2 or "." in equation or "->" not in equation:
        return Restored(MANY if isinstance(operands, (list, tuple)) and len(operands) > 2 else REPEATS)
    inputs, out = equation.split("->")
    one, other = inputs.split(",")
    return _between(builder, node, values, (operands[0], operands[1]), (one, other, out))


def tensordot(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``tensordot`` of a low-rank value and another tensor."""
    one, other, own, theirs = node.args[:4]
    shapes = [shape_of(each) if isinstance(each, Node) else None for each in (one, other)]
    if shapes[0] is None or shapes[1] is None:
        return Restored(MULTIPLIES, Law.INTERACTION)
    left = list(string.ascii_letters[: len(shapes[0])])
    right = list(string.ascii_letters[len(left) : len(left) + len(shapes[1])])
    for first, second in zip(own, theirs, strict=True):  # type: ignore[arg-type]
        right[int(second)] = left[int(first)]
    out = [each for each in left + right if (each in left) != (each in right)]
    return _between(builder, node, values, (one, other), ("".join(left), "".join(right), "".join(out)))


def matrix_product(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``matmul``, ``mm``, ``bmm``."""
    one, other = node.args[:2]
    shapes = [shape_of(each) if isinstance(each, Node) else None for each in (one, other)]
    if shapes[0] is None or shapes[1] is None:
        return Restored(MULTIPLIES, Law.INTERACTION)
    left, right = len(shapes[0]), len(shapes[1])
    batch = string.ascii_uppercase[: max(left, right, 2) - 2]
    rows, columns = "i" if left > 1 else "", "k" if right > 1 else ""
    first = batch[len(batch) - max(left - 2, 0) :] + rows + "j"
    second = batch[len(batch) - max(right - 2, 0) :] + "j" + columns
    return _between(builder, node, values, (one, other), (first, second, batch + rows + columns))


def _between(
    builder: CodeBuilder, node: Node, values: Values, operands: tuple[Any, Any], labels: tuple[str, str, str]
) -> Outcome:
    one, other = operands
    left, right = (values.get(each) if isinstance(each, Node) else None for each in (one, other))
    if isinstance(left, LowRankValue) == isinstance(right, LowRankValue):
        return Restored(MULTIPLIES, Law.INTERACTION)
    first, second, out = labels
    if isinstance(left, LowRankValue):
        return _product(builder, node, left, other, Labels(first, second, out))
    return _product(builder, node, right, one, Labels(second, first, out))  # type: ignore[arg-type]


def _product(builder: CodeBuilder, node: Node, value: LowRankValue, other: Node, labels: Labels) -> Outcome:
    """The product of a low-rank value and something else."""
    if value_of(node).dtype != value_of(value.code).dtype:
        return Restored(OTHER_DTYPE)
    if not labels.are_simple:
        return Restored(REPEATS)
    shape = tuple(value_of(other).shape)
    column = value.trailing[-1] == 1 and labels.own[-1] in labels.other
    if column and len(shape) > 1 and all(str(size) == "1" for size in shape[-2:]):
        return gated(builder, node, value, other)
    wide = [label for label, size in zip(reversed(labels.own), reversed(value.trailing), strict=False) if size != 1]
    feature = wide[0] if wide else labels.own[-1]
    if feature in labels.other:
        return _along_features(builder, value, other, labels)
    if labels.out[-1] != labels.own[-1]:
        return Restored(ORDER)
    return _by_weights(builder, value, other, labels)


def _along_features(builder: CodeBuilder, value: LowRankValue, other: Node, labels: Labels) -> Outcome:
    """The other operand has the feature axis: it must be a constant, summed along it."""
    origin = _unexpanded(other)
    constant = builder.constant(origin)
    contracted = [label for label in labels.other if label in labels.own and label not in labels.out]
    if constant is not None and contracted:
        return _by_constant(builder, value, origin, labels)
    return Restored(MULTIPLIES, Law.INTERACTION)


def _unexpanded(other: Node) -> Node:
    """The constant behind an expansion over the batch."""
    while other.target is aten.expand.default and isinstance(other.args[0], Node):
        other = other.args[0]
    return other


def _without_repeats(constant: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
    """The constant without the axes of size 1 that it is repeated along, and the labels of its others."""
    other = labels.other[len(labels.other) - constant.dim() :]
    shared = [label in labels.own and label in labels.out for label in other]
    axes = [axis for axis, size in enumerate(constant.shape) if size == 1 and shared[axis]]
    kept = "".join(label for axis, label in enumerate(other) if axis not in axes)
    return constant.squeeze(axes), replace(labels, other=kept)


def _without_repeated(value: LowRankValue, constant: Tensor, labels: Labels) -> tuple[LowRankValue, Labels] | None:
    """The value without the feature axes of size 1 that it is repeated along to meet the constant's.

    Returns:
        None where the sizes differ along an axis that is summed.
    """
    lengths, first = dict(zip(labels.other, constant.shape, strict=True)), len(labels.own) - len(value.trailing)
    sizes = dict(zip(labels.own[first:], value.trailing, strict=True))
    repeated = {label for label, size in sizes.items() if lengths.get(label, size) != size}
    if not repeated <= set(labels.out):
        return None
    own = "".join(label for label in labels.own if label not in repeated)
    trailing = tuple(size for label, size in sizes.items() if label not in repeated)
    return replace(value, trailing=trailing), replace(labels, own=own)


def _by_constant(builder: CodeBuilder, value: LowRankValue, origin: Node, labels: Labels) -> Outcome:
    """A constant contracted along the features, and along other feature axes if it has them."""
    constant = builder.constant(origin)
    if constant is None:
        return Restored(MULTIPLIES, Law.INTERACTION)
    constant, labels = _without_repeats(constant, labels)
    involved = [axis for axis, label in enumerate(labels.own) if label in labels.other]
    whole = builder.pull(value, max(len(value.lead) - involved[0], 0))
    if whole is None:
        return Restored("a size on its way is not known before the model runs")
    met = _without_repeated(whole, constant, labels)
    if met is None:
        return Restored(REPEATS)
    whole, labels = met
    lead, tail = labels.own[: len(whole.lead)], labels.own[len(whole.lead) :]
    batch = [label for label in tail if label in labels.other and label in labels.out]
    free = [label for label in tail if label not in labels.other]
    contracted = [label for label in tail if label in labels.other and label not in labels.out]
    results = [label for label in labels.other if label not in labels.own]
    order = [tail.index(label) for label in (*batch, *free, *contracted)]
    moved = on_features(whole, lambda positions: positions.transpose(order))
    if isinstance(moved, Restored):
        return moved
    sizes = dict(zip(tail, whole.trailing, strict=True)) | dict(zip(labels.other, constant.shape, strict=True))
    counts = [math.prod(sizes[label] for label in group) for group in (batch, free, contracted, results)]
    weights = constant.permute([labels.other.index(label) for label in (*batch, *results, *contracted)])
    weights = weights.reshape(counts[0], counts[3], counts[2])
    rows = counts[0] * counts[1]
    ready = replace(moved, trailing=(counts[2],) if rows == 1 else (rows, counts[2]))
    key = ("contraction", origin, labels)
    leaf = _parameter_behind(builder, origin)
    if counts[0] == 1:
        outcome = absorb.apply(builder, ready, Affine(weights[0], None, leaf, None, key, leaf is None, as_it_is=False))
    else:
        maps = [Affine(weights[row // counts[1]], None, leaf, None, (key, row // counts[1])) for row in range(rows)]
        outcome = absorb.per_field(builder, ready, maps)
    made = {label: int(sizes[label]) for label in (*batch, *free, *results)}
    return _in_order(builder, outcome, [[*lead, *made].index(label) for label in labels.out], tuple(made.values()))


def _parameter_behind(builder: CodeBuilder, origin: Node) -> Node | None:
    """The one parameter whose numbers a constant merely rearranges; None where there is none."""
    count = value_of(origin).numel()
    while origin.op == "call_function" and len(origin.all_input_nodes) == 1:
        origin = origin.all_input_nodes[0]
    return origin if origin.op == "get_attr" and value_of(origin).numel() == count else None


def _in_order(builder: CodeBuilder, outcome: Outcome, order: list[int], tail: tuple[int, ...]) -> Outcome:
    """The outcome, whose last axes are ``tail``, with its axes in another order."""
    lead = len(order) - len(tail)
    if isinstance(outcome, Absorbed):
        sizes = tuple(value_of(outcome.node).shape)[:lead]
        result = builder.view(outcome.node, sizes, *tail)
        if order != list(range(len(order))):
            result = builder.emit(aten.permute.default, result, order)
        return Absorbed(result, outcome.reason)
    if not isinstance(outcome, Carried) or not isinstance(outcome.value, LowRankValue):
        return outcome
    if order[:lead] != list(range(lead)):
        return Restored(MIXED_AXES)
    value = replace(outcome.value, trailing=tail)
    inner = [axis - lead for axis in order[lead:]]
    moved = on_features(value, lambda positions: positions.transpose(inner))
    return moved if isinstance(moved, Restored) else Carried(moved)


def _by_weights(builder: CodeBuilder, value: LowRankValue, other: Node, labels: Labels) -> Outcome:
    """Weights without the feature axis: the code is contracted in place of the features."""
    pushed = builder.push(value)
    if pushed is None:
        return Restored(EVERY_FIELD)
    equation = f"{labels.own},{labels.other}->{labels.out}"
    change = functools.partial(_mixed, builder, other, equation)
    return Carried(through_lead(builder, pushed, change))


def _mixed(builder: CodeBuilder, other: Node, equation: str, code: Node) -> Node:
    """The node's own operator on the code."""
    if builder.node.target in (aten.einsum.default, aten.tensordot.default):
        return builder.emit(aten.einsum.default, equation, [code, other])
    return builder.emit(aten.matmul.default, other, code)


def attend(builder: CodeBuilder, node: Node, values: Values) -> Outcome:
    """``scaled_dot_product_attention(q, k, v, mask, dropout, causal)`` whose value alone is low-rank."""
    query, key, source = node.args[:3]
    value = values.get(source) if isinstance(source, Node) else None
    if query in values or key in values or not isinstance(value, LowRankValue):
        return Restored(MULTIPLIES, Law.INTERACTION)
    if len(node.args) > 4 and node.args[4] != 0:
        return Restored(DROPOUT, Law.NONLINEAR)
    pushed = builder.push(value)
    if pushed is None:
        return Restored(EVERY_POSITION)

    def averaged(code: Node) -> Node:
        return builder.emit(node.target, query, key, code, *node.args[3:], **node.kwargs)

    return Carried(through_lead(builder, pushed, averaged))


LAWS = {
    aten.einsum.default: einsum,
    aten.matmul.default: matrix_product,
    aten.mm.default: matrix_product,
    aten.bmm.default: matrix_product,
    aten.tensordot.default: tensordot,
    aten.scaled_dot_product_attention.default: attend,
}
