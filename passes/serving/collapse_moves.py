"""Collapses moves: slices, concats and reshapes that follow one another become the fewest that give the same features.

Replaces ``cat([select(x, 0), select(x, 1), ...])`` with ``slice(x)``,
         ``reshape(cat([slice(x), slice(x), ...]))`` with ``reshape(x)``,
         ``cat([x[:, i], x[:, j], ...])`` of many   with ``index_select(x, [i, j, ...])``.

Every tensor that an operator takes is traced to the columns it is made of (:mod:`passes.graph.provenance`) and
assembled afresh (:mod:`passes.serving.assemble`). Tensors whose moves share a node are decided on together: either
their moves are all replaced or, where that would not be cheaper to serve, all left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from passes.graph import Columns, FeatureColumns, GraphPass, finish
from passes.serving.assemble import Assembler
from passes.serving.serving_cost import ServingCost, cost_of

RULE = "collapse moves"
MOST_PIECES = 2
"""Pieces per tensor that the moves take, beyond which nothing is assembled on trial."""


class CollapseMoves(GraphPass):
    """Replaces chains of moves with the fewest moves that give the same features."""

    after = ("PackTables",)
    """Which features are moved is settled once the tables are packed."""

    def rewrite(self, graph_module: GraphModule) -> None:
        finish(graph_module)
        columns = FeatureColumns(graph_module)
        for family in families_of(graph_module, columns):
            _collapse(graph_module, columns, family)


@dataclass(frozen=True, eq=False)
class Demand:
    """A moved tensor that an operator takes, and the columns that it is made of."""

    consumer: Node
    operand: Node
    columns: Columns


@dataclass(eq=False)
class Family:
    """Demands, in graph order, whose moves share nodes, and all moves that are there only for them."""

    demands: list[Demand] = field(default_factory=list)
    moves: set[Node] = field(default_factory=set)


def families_of(module: GraphModule, columns: FeatureColumns) -> list[Family]:
    """Demands by the moves that they share, directly or through others."""
    leader: dict[Node, Node] = {}

    def lead(node: Node) -> Node:
        while leader[node] is not node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    demands = list(_demands(module, columns))
    for demand in demands:
        cone = columns.moves_behind(demand.operand, leader)
        for node in cone:
            leader.setdefault(node, node)
        for node in cone:
            leader[lead(node)] = lead(demand.operand)
    families: dict[Node, Family] = {}
    for demand in demands:
        families.setdefault(lead(demand.operand), Family()).demands.append(demand)
    for node in leader:
        families[lead(node)].moves.add(node)
    return list(families.values())


def _demands(module: GraphModule, columns: FeatureColumns) -> Iterator[Demand]:
    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr") or columns.is_move(node):
            continue
        for operand in node.all_input_nodes:
            wanted = columns.of(operand) if columns.is_move(operand) else None
            if wanted is not None:
                yield Demand(node, operand, wanted)


def _collapse(module: GraphModule, columns: FeatureColumns, family: Family) -> None:
    """Assembles a family's tensors afresh and keeps what is cheaper."""
    assembler = Assembler(module, columns, RULE)
    wanted = {demand.operand: demand.columns for demand in family.demands}
    operands = sum(len(node.all_input_nodes) for node in family.moves)
    if sum(len(assembler.boxes(each)) for each in wanted.values()) > MOST_PIECES * operands:
        return  # interleaved features: more pieces than the moves take tensors cannot be cheaper
    made = assemble_if_cheaper(assembler, family, wanted)
    if made is not None:
        for demand in family.demands:
            demand.consumer.replace_input_with(demand.operand, made[demand.operand])


def assemble_if_cheaper(
    assembler: Assembler, family: Family, wanted: Mapping[Node, Columns], more_us: float = 0.0
) -> dict[Node, Node] | None:
    """Assembles what a family's operators take, unless the moves that are there are as cheap to serve.

    Args:
        wanted: by operand, the columns that stand for it.
        more_us: microseconds per row that the replacement costs beside its moves.

    Returns:
        By operand the node made, before its first reader; None, and the graph as it was, where it is not cheaper.
    """
    graph = assembler.module.graph
    made: dict[Node, Node] = {}
    for demand in family.demands:
        with graph.inserting_before(demand.consumer):
            if demand.operand not in made:
                made[demand.operand] = assembler.assemble(wanted[demand.operand], demand.operand)
    returned = any(  # an output stays a tensor of its own, never an input
        demand.consumer.op == "output" and made[demand.operand].op == "placeholder" for demand in family.demands
    )
    cost = cost_of(assembler.nodes)
    cost = ServingCost(cost.per_call, cost.per_row + more_us)
    if returned or not cost.beats(cost_of(family.moves)):
        for node in reversed(assembler.nodes):
            graph.erase_node(node)
        return None
    return made
