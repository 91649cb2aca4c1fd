"""LINEAR: attention, whose values are averaged with weights that do not depend on them.

Replaces ``softmax(q k^T) (A z + o)`` with ``A (softmax(q k^T) z) + o (softmax(q k^T) 1)``: the values stay codes, and a
column of ones beside them collects the sum of the weights (0 for a query that may look at nothing).
"""

from __future__ import annotations

from torch.fx import Node

from passes.code_builder import CodeBuilder
from passes.common_form import through_lead
from passes.graph_tools import aten
from passes.low_rank_value import LowRankValue
from passes.need_features import MULTIPLIES
from passes.outcomes import Carried, Law, Outcome, Restored, Values

EVERY_POSITION = "its values have a different decoder at every position"
DROPOUT = "it drops attention weights at random"


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


LAWS = {aten.scaled_dot_product_attention.default: attend}
