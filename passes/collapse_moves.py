"""Collapses moves: slices, concats and reshapes that follow one another become the fewest that give the same features.

Replaces ``cat([select(x, 0), select(x, 1), ...])`` with ``slice(x)``,
         ``reshape(cat([slice(x), slice(x), ...]))`` with ``reshape(x)``,
         ``cat([x[:, i], x[:, j], ...])`` of many   with ``index_select(x, [i, j, ...])``.

Every tensor that an operator takes is traced to the columns it is made of (:mod:`passes.feature_columns`) and assembled
afresh (:mod:`passes.assemble`). The result is kept where it is cheaper to serve, otherwise the graph stays as it was.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from passes.assemble import Assembler
from passes.feature_columns import FeatureColumns
from passes.graph_tools import clone_graph_module, finish
from passes.serving_cost import serving_cost

RULE = "collapse moves"


class CollapseMoves(PassBase):
    """Replaces chains of moves with the fewest moves that give the same features."""

    def call(self, graph_module: GraphModule) -> PassResult:
        collapsed = collapse(clone_graph_module(graph_module))
        if serving_cost(collapsed).beats(serving_cost(graph_module)):
            return PassResult(collapsed, True)
        return PassResult(graph_module, False)


def collapse(module: GraphModule) -> GraphModule:
    """Collapses in place, whatever it costs."""
    columns = FeatureColumns(module)
    assembler = Assembler(module, columns, RULE)
    for node in list(module.graph.nodes):
        if node.op in ("placeholder", "get_attr") or columns.is_move(node):
            continue
        for operand in node.all_input_nodes:
            if not columns.is_move(operand):
                continue
            wanted = columns.of(operand)
            if wanted is None:
                continue
            with module.graph.inserting_before(node):
                made = assembler.assemble(wanted, operand)
            if made.op != "placeholder" or node.op != "output":
                node.replace_input_with(operand, made)
    return finish(module)
