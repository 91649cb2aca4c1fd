"""Computes products of one output as rows.

Replaces ``mm(x, w)``, ``addmm(c, x, w)`` of one output, ``[batch, 1]``
with     ``reshape(mm(w^T, x^T))``, ``reshape(addmm(c^T, w^T, x^T))``, ``[1, batch]``,

and a sigmoid behind such a product with the sigmoid of the row. A chain of products that start from one another stays a
row until its end, so one ``reshape`` is added in all, and a runtime takes the transposition of ``x`` into the product.
A constant factor on the right is packed for many columns at once (16 in ONNX Runtime, of which 15 are thrown away); on
the left it is not, and every output is one dot product along a row of ``x`` as it lies in memory.
"""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from passes.graph import (
    FeatureColumns,
    GraphPass,
    WeightedCall,
    args_of,
    aten,
    buffer,
    call,
    derived_name,
    get_attribute,
    parameter,
    shape_of,
    weighted_call,
)

RULE = "logit rows"
LEAST_FEATURES = 64
"""A chain is worth its ``reshape`` for one row where one of its products reads so many features."""


class LogitRows(GraphPass):
    """Replaces chains of products ``[batch, 1]`` by products ``[1, batch]``."""

    after = ("StartProducts",)
    """A chain is complete when every product in it starts from the one before."""

    def rewrite(self, graph_module: GraphModule) -> None:
        columns, rows = FeatureColumns(graph_module), dict[Node, Node]()
        for node in _in_long_chains(graph_module, columns):
            with graph_module.graph.inserting_before(node):
                rows[node] = _row(graph_module, node, rows)
        size = [columns.batch if isinstance(columns.batch, int) else -1, 1]
        for node, row in reversed(rows.items()):
            if all(user in rows for user in node.users):
                continue  # goes with its readers, which are rows
            with graph_module.graph.inserting_before(node):
                made = call(graph_module.graph, aten.reshape.default, row, size, rule=RULE, like=node)
            node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in rows)


def _in_long_chains(module: GraphModule, columns: FeatureColumns) -> list[Node]:
    """The products and sigmoids of chains that are worth it, in order."""
    first, features = dict[Node, Node](), dict[Node, int]()
    for node in module.graph.nodes:
        if node.op != "call_function" or columns.trailing(node) != (1,):
            continue
        if node.target is aten.sigmoid.default and args_of(node)[0] in first:
            first[node] = first[args_of(node)[0]]
        elif (product := _product(module, node)) is not None:
            start = first[node] = node if product.start is None else first.get(product.start, node)
            features[start] = max(features.get(start, 0), product.weight.shape[1])
    return [node for node, start in first.items() if features[start] >= LEAST_FEATURES]


def _product(module: GraphModule, node: Node) -> WeightedCall | None:
    """A product by a constant of its own that starts from nothing or from ``[batch, 1]``."""
    product = weighted_call(module, node, aten.mm.default, aten.addmm.default)
    if product is None or not product.is_only_reader:
        return None
    if product.start is None:
        return product
    return product if shape_of(product.start) == shape_of(node) else None


def _row(module: GraphModule, node: Node, rows: dict[Node, Node]) -> Node:
    """The node as ``[1, batch]``."""
    graph, product = module.graph, _product(module, node)
    if product is None:
        return call(graph, aten.sigmoid.default, rows[args_of(node)[0]], rule=RULE, like=node)
    factor = _factor(module, product.name)
    across = call(graph, aten.transpose.int, product.source, 0, 1, rule=RULE, like=node)
    if product.start is None:
        return call(graph, aten.mm.default, factor, across, rule=RULE, like=node)
    start = rows.get(product.start) or call(graph, aten.reshape.default, product.start, [1, -1], rule=RULE, like=node)
    return call(graph, aten.addmm.default, start, factor, across, rule=RULE, like=node)


def _factor(module: GraphModule, name: str) -> Node:
    """The weight of that name as ``[1, features]``, trained where it was."""
    weight = get_attribute(module, name)
    across = weight.detach().mT.contiguous()
    if not isinstance(weight, nn.Parameter):
        return buffer(module, f"{name}_row", across, rule=RULE)
    return parameter(module, derived_name(name, "row"), across, rule=RULE, trainable=weight.requires_grad)
