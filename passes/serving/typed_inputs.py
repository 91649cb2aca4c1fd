"""Splits float inputs that carry ids into typed ones.

Replaces ``to int64(x[:, ids])`` and ``x[:, features]`` of a float matrix ``x [batch, columns]``
with     the inputs ``sparse`` int64 ``[batch, ids]`` and ``dense`` ``[batch, features]`` of ``x``'s number format.

A column is an *id* where the graph casts it to integers before anything else is done with it, and a *feature* where
it is read as the float number that it is. A column that is read both ways is in both inputs; one that nothing reads is
in neither. Within an input, the columns stand in their order, unless the widest reader takes them in another: then
they follow it, so that it reads the input as it is. Ids that never were floats stay apart beyond ``2^24``, where
float32 has no room for every integer.

Which operators only move columns on their way is told by :mod:`passes.graph.provenance`; what they say is assembled
afresh from the new inputs. An input that carries no ids is left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from passes.graph import Columns, FeatureColumns, GraphPass, aten, call, fake_mode, finish, is_size, stamp, value_of
from passes.serving.assemble import Assembler
from passes.sites import IdBound, input_bounds

RULE = "split inputs"
IDS, FEATURES = "sparse", "dense"
_TEMPLATES = frozenset({aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default})
"""Operators that read a tensor's number format and none of its numbers."""


@dataclass(frozen=True)
class SplitInput:
    """An input that was made of columns of another.

    Attributes:
        source: the name of the input that it was made of.
        columns: for each of its columns, row-major, the place among the source's columns, row-major.
        ids: whether it holds ids (int64), or else features in the source's number format.
    """

    name: str
    source: str
    columns: tuple[int, ...]
    ids: bool


@dataclass(frozen=True, eq=False)
class _Reading:
    """A reader of columns of float inputs."""

    reader: Node
    operand: Node
    columns: Columns
    ids: bool


class SplitInputs(GraphPass):
    """Replaces ``to int64(x[:, ids])`` and ``x[:, features]`` with inputs of their own.

    The rewritten module takes its inputs by keyword (see ``keywords``) where it took a pytree before.

    Args:
        keywords: for inputs by their names in the graph, the keyword under which the rewritten module takes them
            where they are left alone; their names in the graph by default.

    Attributes:
        bounds: the ids that the lookups of the graph take, for columns of the inputs made.
    """

    keeps_inputs: ClassVar[bool] = False

    def __init__(self, keywords: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._keywords = dict(keywords or {})
        self.made: tuple[SplitInput, ...] = ()
        self.bounds: tuple[IdBound, ...] = ()

    def rewrite(self, graph_module: GraphModule) -> None:
        """See the module."""
        columns = FeatureColumns(graph_module)
        readings, forms = _readings(graph_module, columns)
        sources = _sources_with_ids(columns, readings)
        if not sources:
            return
        split = _Split(graph_module, columns, self._keywords)
        for source in sources:
            split.add(source, readings, alone=len(sources) == 1)
        split.redirect(readings)
        split.take_forms(forms)
        finish(graph_module)
        for source in sources:
            graph_module.graph.erase_node(source)
        _take_by_keyword(graph_module.graph, self._keywords)
        graph_module.recompile()
        self.made = tuple(split.made.values())
        self.bounds = _bounds(graph_module, {each.name for each in self.made if each.ids})


def _readings(module: GraphModule, columns: FeatureColumns) -> tuple[list[_Reading], list[Node]]:
    """Everything that reads columns of float inputs, in graph order, and what only asks for their form."""
    pure: set[Node] = set()
    readings: list[_Reading] = []
    forms: list[Node] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = value_of(node)
            if isinstance(value, Tensor) and value.is_floating_point() and columns.of(node) is not None:
                pure.add(node)
            continue
        operands = [each for each in node.all_input_nodes if each in pure]
        if not operands:
            continue
        if columns.is_move(node) and all(each in pure or is_size(each) for each in node.all_input_nodes):
            pure.add(node)
        elif node.target is aten.sym_size.int or node.target in _TEMPLATES:
            forms.append(node)
        else:
            for operand in operands:
                wanted = columns.of(operand)
                if wanted is not None:
                    readings.append(_Reading(node, operand, wanted, _casts_to_integers(node)))
    return readings, forms


def _casts_to_integers(node: Node) -> bool:
    copies = node.target is aten._to_copy.default and set(node.kwargs) == {"dtype"}
    if not copies and node.target is not aten.to.dtype:
        return False
    dtype = value_of(node).dtype
    return not dtype.is_floating_point and not dtype.is_complex and dtype is not torch.bool


def _sources_with_ids(columns: FeatureColumns, readings: Iterable[_Reading]) -> list[Node]:
    """Inputs with a column that is an id, in graph order."""
    found = {columns.node(each) for reading in readings if reading.ids for each in _numbers(columns, reading.columns)}
    return [node for node in next(iter(found)).graph.nodes if node in found] if found else []


def _numbers(columns: FeatureColumns, wanted: Columns) -> set[int]:
    return set(columns.sources(wanted.reshape(-1))[0].tolist())


class _Split:
    """The new inputs of one graph, and where the old columns are in them."""

    def __init__(self, module: GraphModule, columns: FeatureColumns, keywords: Mapping[str, str]) -> None:
        self.module, self.columns = module, columns
        self._keywords = keywords
        self.made: dict[Node, SplitInput] = {}
        self._assembler = Assembler(module, columns, RULE)
        self._place: dict[bool, dict[int, int]] = {True: {}, False: {}}
        self._taken = {node.name for node in module.graph.nodes} | set(keywords.values())

    def add(self, source: Node, readings: Sequence[_Reading], *, alone: bool) -> None:
        """Makes the inputs that stand for a source before it; prefixed by its name where it is not the only one."""
        own = self.columns.of(source)
        if own is None:
            raise AssertionError("a source has columns")
        prefix = "" if alone else f"{self._keywords.get(source.name, source.name)}_"
        wanted = {ids: _wanted(own, [each for each in readings if each.ids is ids]) for ids in (True, False)}
        if not wanted[False] and set(wanted[True]) == set(range(own.size)):  # every column an id: another format only
            self._make(source, f"{prefix}{IDS}", range(own.size), own.shape, ids=True)
            return
        for ids, name in ((True, IDS), (False, FEATURES)):
            if wanted[ids]:
                self._make(source, f"{prefix}{name}", wanted[ids], (len(wanted[ids]),), ids=ids)

    def _make(self, source: Node, name: str, places: Sequence[int], trailing: Sequence[int], *, ids: bool) -> None:
        graph, was = self.module.graph, value_of(source)
        with graph.inserting_before(source):
            node = graph.placeholder(_unique(name, self._taken))
        self._taken.add(node.name)
        with fake_mode(graph):
            node.meta["val"] = was.new_empty((was.shape[0], *trailing), dtype=torch.int64 if ids else was.dtype)
        stamp(node, RULE, source)
        old, new = self.columns.of(source), self.columns.of(node)
        if old is None or new is None:
            raise AssertionError("a source has columns")
        self._place[ids].update(zip(old.reshape(-1)[list(places)].tolist(), new.reshape(-1).tolist(), strict=True))
        self.made[node] = SplitInput(node.name, source.name, tuple(places), ids)

    def redirect(self, readings: Iterable[_Reading]) -> None:
        """Lets every reader of an old column read a new one."""
        for reading in readings:
            place = self._place[reading.ids]
            flat = [place.get(column, column) for column in reading.columns.reshape(-1).tolist()]
            if flat == reading.columns.reshape(-1).tolist():
                continue
            wanted = np.asarray(flat, dtype=np.int64).reshape(reading.columns.shape)
            with self.module.graph.inserting_before(reading.reader):
                made = self._assembler.assemble(wanted, reading.operand)
                if reading.ids and value_of(reading.reader).dtype is not torch.int64:
                    dtype = value_of(reading.reader).dtype
                    made = call(
                        self.module.graph, aten._to_copy.default, made, rule=RULE, like=reading.reader, dtype=dtype
                    )
            if reading.ids:
                reading.reader.replace_all_uses_with(made)
            else:
                reading.reader.replace_input_with(reading.operand, made)

    def take_forms(self, forms: Iterable[Node]) -> None:
        """Asks a new input for the batch size, and names the number format that was read off an old one."""
        graph, first = self.module.graph, next(iter(self.made))
        for form in forms:
            with graph.inserting_before(form):
                if form.target is aten.sym_size.int:
                    asked = call(graph, aten.sym_size.int, first, 0, rule=RULE, like=form)
                else:
                    target: Any = form.target
                    options = {**form.kwargs, "dtype": value_of(form).dtype}
                    asked = call(graph, target, first, *form.args[1:], rule=RULE, like=form, **options)
            form.replace_all_uses_with(asked)


def _wanted(own: Columns, readings: Sequence[_Reading]) -> list[int]:
    """The places of one source that are read: in their order, unless the widest reader takes them in another."""
    first = int(own.reshape(-1)[0]) if own.size else 0
    taken = [
        [column - first for column in each.columns.reshape(-1).tolist() if 0 <= column - first < own.size]
        for each in readings
    ]
    in_order = sorted(set(itertools.chain.from_iterable(taken)))
    lengths = [len(each) for each in taken]
    widest = list(dict.fromkeys(taken[lengths.index(max(lengths))])) if taken else []
    start = in_order.index(widest[0]) if widest else 0
    if in_order[start : start + len(widest)] == widest:
        return in_order
    return list(dict.fromkeys((*widest, *in_order)))


def _unique(name: str, taken: Collection[str]) -> str:
    candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(each for each in candidates if each not in taken)


def _take_by_keyword(graph: Graph, keywords: Mapping[str, str]) -> None:
    """Lets the module take one keyword per input where it takes a pytree; its outputs stay as they are."""
    codegen: Any = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen):
        return
    names = [keywords.get(node.name, node.name) for node in graph.nodes if node.op == "placeholder"]
    structure = pytree.tree_structure(((), dict.fromkeys(names, 0)))
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, structure, codegen.pytree_info.out_spec)))


def _bounds(module: GraphModule, names: Collection[str]) -> tuple[IdBound, ...]:
    """What the lookups take, for columns of the named inputs, each once."""
    columns = FeatureColumns(module)
    lookups = columns.lookups()
    bounds = (bound for each in lookups for bound in input_bounds(columns, each.name, len(each.table), each.ids))
    return tuple(dict.fromkeys(bound for bound in bounds if bound.input in names))
