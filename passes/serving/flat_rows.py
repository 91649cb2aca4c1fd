"""Computes on rows that are seen with an axis of one as on rows.

Replaces ``linear(reshape(x, [batch, 1, n]), W, b)``  with ``reshape(linear(x, W, b), [batch, 1, k])``,
         ``f(reshape(x, [batch, 1, n]))``             with ``reshape(f(x), [batch, 1, n])``,

where ``f`` works on one feature at a time. The ``reshape`` goes down until another move takes it in, and a Linear of
two axes is one operator in a runtime, a Linear of three a product and a sum.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from passes.graph import FeatureColumns, GraphPass, aten, call, is_call, rewrite_each, shape_of

RULE = "flat rows"

_OF_TWO = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})
_OF_ONE = frozenset(
    {
        aten.pow.Tensor_Scalar, aten.square.default, aten.neg.default, aten.relu.default, aten.sigmoid.default,
        aten.tanh.default, aten.linear.default,
    }
)  # fmt: skip
_RESHAPES = (aten.reshape.default, aten.view.default, aten.unsqueeze.default)


class FlatRows(GraphPass):
    """Replaces operators on ``[batch, 1, n]`` with operators on the ``[batch, n]`` that this was made of."""

    after = ("CollapseMoves",)
    """Moves that follow one another are one reshape by then."""

    def rewrite(self, graph_module: GraphModule) -> None:
        columns = FeatureColumns(graph_module)
        rewrite_each(graph_module, lambda _, node: _flat(columns, node))


def _flat(columns: FeatureColumns, node: Node) -> Node | None:
    """The operator on rows, and its result as it was."""
    if not is_call(node, *_OF_ONE, *_OF_TWO):
        return None
    count = 2 if node.target in _OF_TWO else 1
    sources = [_row(columns, operand) for operand in node.args[:count]]
    trailing = columns.trailing(node)
    if not all(sources) or trailing is None or len(trailing) != 2:
        return None
    made = call(node.graph, node.target, *sources, *node.args[count:], rule=RULE, like=node)  # type: ignore[arg-type]
    batch = columns.batch if isinstance(columns.batch, int) else -1
    return call(node.graph, aten.reshape.default, made, [batch, *trailing], rule=RULE, like=node)


def _row(columns: FeatureColumns, operand: Any) -> Node | None:
    """What ``[batch, 1, n]`` is a reshape of, if that is ``[batch, n]``."""
    if not is_call(operand, *_RESHAPES) or not isinstance(source := operand.args[0], Node):
        return None
    whole, row = columns.trailing(operand), columns.trailing(source)
    return source if row is not None and whole == (1, *row) and len(shape_of(source) or ()) == 2 else None
