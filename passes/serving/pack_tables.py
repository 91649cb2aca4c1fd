"""Packs tables: one gather from one stacked table instead of a lookup per field.

Replaces ``embedding(T_1, x_1), ..., embedding(T_k, x_k)``
with     ``slices of embedding(T, cat(x_1, ..., x_k) + starts)``,

where ``T`` is ``T_1`` ... ``T_k`` below one another and ``starts`` their first rows. Tables that the same ids read
(the linear term's beside the embedding's) stand side by side in one row. A table that anything else reads stays alone,
for it would be there twice. Slices, casts and constant offsets that every
id had to itself are done once for all. Rows are copied bit by bit, so every valid id gives the same features. An id
outside its table is no longer outside the packed one; :mod:`passes.sites.id_bounds` can keep it from another table's
rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from passes.graph import (
    Columns,
    FeatureColumns,
    GraphPass,
    IdColumn,
    TracedLookup,
    args_of,
    aten,
    buffer,
    call,
    clone_graph_module,
    fake_mode,
    finish,
    is_read_by,
    parameter,
    replace_node,
    reserve_names,
    shape_of,
    value_of,
)
from passes.serving.assemble import Assembler
from passes.serving.collapse_moves import CollapseMoves
from passes.serving.serving_cost import ServingCost, serving_cost
from passes.serving.table_layout import RowGroup, TableLayout, packed_tables, row_groups, widest
from passes.serving.widen_linears import WidenLinears
from passes.sites import IdBound, OutOfRange, guarded, input_bounds

RULE = "pack tables"


@dataclass(frozen=True)
class PackedTable:
    """What was packed into one table.

    Attributes:
        lookups: number of lookups that one gather replaces.
        padding: scalars that no id reads.
        bounds: where the ids are columns of an input, what they must lie within.
    """

    name: str
    rows: int
    width: int
    tables: tuple[str, ...]
    lookups: int
    padding: int
    bounds: tuple[IdBound, ...] = ()


class PackTables(GraphPass):
    """Replaces lookups by slices of one gather from one table, where that is cheaper to serve.

    Args:
        free_sources: let the tables packed become views of the packed table, so that memory holds them once. Only for
            tables that nobody else trains or saves.
    """

    after = ("MergeLinears", "RowTerms")
    """The numbers of row terms are tables to pack, and what Linears read decides the order of the fields."""

    def __init__(self, *, out_of_range: OutOfRange = OutOfRange.UNCHECKED, free_sources: bool = False) -> None:
        super().__init__()
        self.out_of_range = out_of_range
        self.free_sources = free_sources
        self.packed: tuple[PackedTable, ...] = ()

    def rewrite(self, graph_module: GraphModule) -> GraphModule:
        module, cost, refused = graph_module, _cost(graph_module), set[frozenset[str]]()
        names, reports = {node.name for node in module.graph.nodes}, list[PackedTable]()
        while (tables := _next_tables(module, refused)) is not None:
            candidate = clone_graph_module(module)
            reserve_names(candidate, names)
            packing = _Packing(candidate, tables, self.out_of_range)
            packing.run()
            after = _cost(candidate)
            if not after.beats(cost):
                refused.add(tables)
                continue
            packing.fill(self.free_sources)
            finish(candidate)  # lets go of the tables before the next ones are packed
            module, cost = candidate, after
            reports.append(packing.report())
        self.packed += tuple(reports)  # beside those of earlier runs
        return module


def _cost(module: GraphModule) -> ServingCost:
    """What a graph costs once its moves are collapsed and its Linears read ranges."""
    clone = clone_graph_module(module)
    CollapseMoves().rewrite(clone)  # trials: the checks come with the passes themselves
    WidenLinears().rewrite(clone)
    finish(clone)
    return serving_cost(clone)


def _next_tables(module: GraphModule, refused: Collection[frozenset[str]]) -> frozenset[str] | None:
    """The next tables that may become one; none of those that are packed, or that it did not pay for."""
    for groups in packed_tables(row_groups(_of_tables_that_go(_apart_from_rows(FeatureColumns(module).lookups())))):
        names = frozenset(name for group in groups for name in group.tables)
        if names not in refused and not any(name.startswith("packed_") for name in names):
            return names
    return None


def _apart_from_rows(lookups: Sequence[TracedLookup]) -> list[TracedLookup]:
    """The lookups in tables whose ids are not made of looked-up rows: such ids come too late for one gather."""
    behind = {lookup.node for lookup in lookups}
    for node in lookups[0].node.graph.nodes if lookups else ():
        if any(operand in behind for operand in node.all_input_nodes):
            behind.add(node)
    late = {lookup.name for lookup in lookups if args_of(lookup.node)[1] in behind}
    return [lookup for lookup in lookups if lookup.name not in late]


def _of_tables_that_go(lookups: Sequence[TracedLookup]) -> list[TracedLookup]:
    """The lookups in tables that nothing but these lookups reads."""
    nodes = {lookup.node for lookup in lookups}
    return [lookup for lookup in lookups if is_read_by(args_of(lookup.node)[0], nodes)]


class _Packing:
    """One packing of some tables in one graph."""

    def __init__(self, module: GraphModule, names: Collection[str], out_of_range: OutOfRange) -> None:
        self.module = module
        self.columns = FeatureColumns(module)
        self.lookups = [each for each in self.columns.lookups() if each.name in names]
        groups = _in_consumer_order(row_groups(self.lookups), self.columns)
        self.groups, self.layout, self.out_of_range = groups, TableLayout(tuple(groups)), out_of_range
        self._name = ""

    def run(self) -> None:
        """Emits ids, gather and slices. The packed table is a stand-in without memory of its own."""
        graph, first = self.module.graph, self.lookups[0].node
        like = self.lookups[0].table
        trainable = any(lookup.table.requires_grad for lookup in self.lookups)
        stand_in = torch.zeros((1, 1), dtype=like.dtype, device=like.device)
        stand_in = stand_in.expand(self.layout.starts[-1], widest(self.groups))
        table = parameter(self.module, "packed_table.weight", stand_in, rule=RULE, trainable=trainable)
        self._name = str(table.target)
        fields = [(position, column) for position, group in enumerate(self.groups) for column in group.ids]
        by_dtype: dict[torch.dtype, list[tuple[int, IdColumn]]] = {}
        for each in fields:
            by_dtype.setdefault(value_of(self._source(each[1])).dtype, []).append(each)
        self._make_ids_before(first)
        with graph.inserting_before(first):
            ids = self._ids(by_dtype, first)
            gathered = call(graph, aten.embedding.default, table, ids, rule=RULE, like=first)
        places = {each: place for place, each in enumerate(itertools.chain.from_iterable(by_dtype.values()))}
        self._replace(gathered, places)

    @torch.no_grad()
    def fill(self, free_sources: bool) -> None:
        """Puts the packed table in the place of its stand-in."""
        owner_name, _, leaf = self._name.rpartition(".")
        owner = self.module.get_submodule(owner_name)
        stand_in = owner._parameters[leaf]
        if stand_in is None:
            raise AssertionError("a parameter that was registered")
        packed = torch.empty(stand_in.shape, dtype=stand_in.dtype, device=stand_in.device)
        self.layout.fill(packed, free_sources=free_sources)
        made = owner._parameters[leaf] = nn.Parameter(packed, requires_grad=stand_in.requires_grad)
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and node.target == self._name:
                node.meta["val"] = fake_mode(self.module.graph).from_tensor(made, static_shapes=True)

    def report(self) -> PackedTable:
        """What was packed, the ids that may be read in it included."""
        rows, width = self.layout.starts[-1], widest(self.groups)
        padding = rows * width - sum(group.rows * group.width for group in self.groups)
        tables = [(list(group.tables)[-1], group.rows, group.ids) for group in self.groups]
        bounds = dict.fromkeys(bound for each in tables for bound in input_bounds(self.columns, *each))
        return PackedTable(self._name, rows, width, self.layout.tables, len(self.lookups), padding, tuple(bounds))

    def _make_ids_before(self, first: Node) -> None:
        """Moves what the ids are made of in front of the first lookup."""
        pending = [self._source(column) for group in self.groups for column in group.ids]
        needed = set[Node]()
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending += node.all_input_nodes
        late = itertools.dropwhile(lambda node: node is not first, list(self.module.graph.nodes))
        for node in late:
            if node in needed:
                first.prepend(node)

    def _source(self, column: IdColumn) -> Node:
        return self.columns.source(column.column)[0]

    def _ids(self, by_dtype: Mapping[torch.dtype, Sequence[tuple[int, IdColumn]]], like: Node) -> Node:
        """int64 [batch, fields]: rows of the packed table."""
        graph = self.module.graph
        assembler = Assembler(self.module, self.columns, RULE)
        nodes = []
        for dtype, fields in by_dtype.items():
            node = assembler.assemble(np.asarray([column.column for _, column in fields], dtype=np.int64), like)
            if dtype is not torch.int64:
                node = call(graph, aten._to_copy.default, node, rule=RULE, like=like, dtype=torch.int64)
            nodes.append(node)
        order = list(itertools.chain.from_iterable(by_dtype.values()))
        ids = nodes[0] if len(nodes) == 1 else call(graph, aten.cat.default, nodes, 1, rule=RULE, like=like)
        starts = self.layout.starts
        valid = [(-column.offset, self.groups[position].rows - column.offset) for position, column in order]
        if self.out_of_range is OutOfRange.ERROR:
            ids = guarded(self.module, ids, valid, like)
        offsets = torch.tensor([starts[position] + column.offset for position, column in order])
        if not bool(offsets.any()):
            return ids
        offsets = offsets.to(value_of(like).device)
        constant = buffer(self.module, "packed_table.starts", offsets, rule=RULE)
        return call(graph, aten.add.Tensor, ids, constant, rule=RULE, like=like)

    def _replace(self, gathered: Node, places: dict[tuple[int, IdColumn], int]) -> None:
        """Puts slices of the gather where the lookups were."""
        columns = FeatureColumns(self.module)
        base = columns.of(gathered)
        if base is None:
            raise AssertionError("a gather is [batch, fields, width]")
        assembler = Assembler(self.module, columns, RULE)
        made = dict[Node, Node]()
        with self.module.graph.inserting_before(gathered.next):  # slices may share what they are cut from
            for position, group in enumerate(self.groups):
                for lookup in group.lookups:
                    start = group.column_of(lookup.name)
                    rows = [places[position, column] for column in lookup.ids]
                    wanted: Columns = base[rows, start : start + lookup.table.shape[1]]
                    trailing = tuple(shape_of(lookup.node) or ())[1:]
                    made[lookup.node] = assembler.assemble(wanted.reshape(trailing), lookup.node)
        for node, rows_of_it in made.items():
            replace_node(node, rows_of_it)


def _in_consumer_order(groups: list[RowGroup], columns: FeatureColumns) -> list[RowGroup]:
    """Row groups in the order in which the widest tensor made of them holds their features."""
    owner: dict[Node, int] = {}
    for position, group in enumerate(groups):
        for lookup in group.lookups:
            owner[lookup.node] = position
    best: list[int] = []
    weight = 0
    for node in next(iter(owner)).graph.nodes:
        wanted = columns.of(node) if node.op == "call_function" and columns.is_move(node) else None
        if wanted is None or wanted.size <= weight:
            continue
        which, _ = columns.sources(wanted.reshape(-1))
        sequence = [owner.get(columns.node(int(number))) for number in dict.fromkeys(which.tolist())]
        known = [position for position in sequence if position is not None]
        if len(set(known)) > len(set(best)):
            best, weight = list(dict.fromkeys(known)), int(wanted.size)
    return [groups[position] for position in (*best, *(each for each in range(len(groups)) if each not in best))]
