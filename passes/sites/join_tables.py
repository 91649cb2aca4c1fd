"""Tables looked up by the same ids as one table.

Replaces ``embedding(E, ids), embedding(w, ids)``
with     ``g[..., :n], g[..., n:]`` of one ``g = embedding([E | w], ids)``.

The embedding of a field and its weight in the linear term are two functions of one id, so they are one row of
``n + 1`` features, and one code can describe both. Nothing is computed differently; that the joint table is a single
site (:mod:`passes.sites`) is the purpose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.graph import GraphPass, TableIndexError, aten, call, constant_of, derived_name, parameter, shape_of
from passes.sites.sites import SiteKind, site_name

RULE = "join tables"


@dataclass(frozen=True)
class JointTable:
    """Tables that may become one.

    Attributes:
        name: of the site that the joint table is.
        tables: names of the tables (as sites), in the order of their features.
        lookups: for every lookup of the joint table, the nodes of the tables' own lookups.
    """

    name: str
    tables: tuple[str, ...]
    parameters: tuple[str, ...]
    rows: int
    widths: tuple[int, ...]
    lookups: tuple[tuple[str, ...], ...]

    @property
    def kind(self) -> SiteKind:
        """Of the site."""
        return SiteKind.EMBEDDING

    @property
    def shape(self) -> tuple[int, int]:
        """Of the joint table."""
        return self.rows, sum(self.widths)


class JoinTables(GraphPass):
    """Replaces the lookups of tables that share their ids with slices of one lookup.

    Args:
        names: of the joint tables to make (see :func:`joinable_tables`), None for all.
        blank: make the joint tables without data, for runs that look at the structure, or that have the tables' data
            from elsewhere.
    """

    def __init__(self, names: Collection[str] | None = None, *, blank: bool = False) -> None:
        super().__init__()
        self.names = None if names is None else frozenset(names)
        self.blank = blank

    def rewrite(self, graph_module: GraphModule) -> None:
        found = join_tables(graph_module, self.names, blank=self.blank)
        unknown = sorted((self.names or frozenset()) - found.keys())
        if unknown:
            raise TableIndexError(f"the graph has no tables that could be joined as '{unknown[0]}'")


def join_tables(
    module: GraphModule, names: Collection[str] | None = None, *, blank: bool = False
) -> dict[str, tuple[Tensor, ...]]:
    """Makes the joint tables that are named (None: all) and could be made; for arguments see :class:`JoinTables`.

    Returns:
        By name of each joint table, the tables [V, n_i] that it is made of.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    chosen = [joint for joint in joinable_tables(module) if names is None or joint.name in names]
    return {joint.name: _join(module, joint, nodes, blank=blank) for joint in chosen}


def _join(module: GraphModule, joint: JointTable, nodes: dict[str, Node], *, blank: bool) -> tuple[Tensor, ...]:
    tables = tuple(module.get_parameter(name).detach() for name in joint.parameters)
    table = _without_data(tables) if blank else torch.cat(tables, dim=1)
    weight = parameter(module, f"{joint.name}.weight", table, rule=RULE, device=tables[0].device)
    for names in joint.lookups:
        lookups = [nodes[name] for name in names]
        first = next(node for node in module.graph.nodes if node in lookups)
        with module.graph.inserting_before(first):
            rows = call(module.graph, first.target, weight, *first.args[1:], rule=RULE, like=first, **first.kwargs)
            axis, start = len(shape_of(rows) or ()) - 1, 0
            for lookup, width in zip(lookups, joint.widths, strict=True):
                part = call(module.graph, aten.slice.Tensor, rows, axis, start, start + width, rule=RULE, like=lookup)
                lookup.replace_all_uses_with(part)
                start += width
        for lookup in lookups:
            module.graph.erase_node(lookup)
    return tables


def _without_data(tables: tuple[Tensor, ...]) -> Tensor:
    width = sum(table.shape[1] for table in tables)
    return tables[0].new_zeros(()).expand(tables[0].shape[0], width)  # one number in memory


def joinable_tables(module: GraphModule) -> tuple[JointTable, ...]:
    """The sets of tables of equal rows that are looked up by the same ids and used for nothing else, in graph order."""
    groups: dict[object, list[tuple[Node, list[Node]]]] = {}
    for weight, lookups in _tables(module):
        ids = frozenset(Counter(_call_of(lookup) for lookup in lookups).items())
        tensor = module.get_parameter(str(weight.target))
        groups.setdefault((ids, tensor.shape[0], tensor.dtype, tensor.device), []).append((weight, lookups))
    return tuple(_joint(module, group) for group in groups.values() if len(group) > 1)


def _joint(module: GraphModule, group: list[tuple[Node, list[Node]]]) -> JointTable:
    parameters = tuple(str(weight.target) for weight, _ in group)
    ordered = [sorted(lookups, key=lambda lookup: repr(_call_of(lookup))) for _, lookups in group]
    return JointTable(
        name=site_name(derived_name(parameters[0], "joint")),
        tables=tuple(map(site_name, parameters)),
        parameters=parameters,
        rows=int(module.get_parameter(parameters[0]).shape[0]),
        widths=tuple(int(module.get_parameter(name).shape[1]) for name in parameters),
        lookups=tuple(tuple(lookup.name for lookup in lookups) for lookups in zip(*ordered, strict=True)),
    )


def _tables(module: GraphModule) -> Iterator[tuple[Node, list[Node]]]:
    """Tables that are parameters of one name, with their lookups, where they have no other use."""
    uses: Counter[int] = Counter()
    weights = []
    for node in module.graph.nodes:
        tensor = constant_of(module, node)
        if tensor is not None:
            uses[id(tensor)] += 1
            weights.append((node, tensor))
    for node, tensor in weights:
        lookups = list(node.users)
        plain = all(user.target is aten.embedding.default and user.args[0] is node for user in lookups)
        if isinstance(tensor, nn.Parameter) and tensor.dim() == 2 and uses[id(tensor)] == 1 and lookups and plain:
            yield node, lookups


def _call_of(lookup: Node) -> tuple[object, ...]:
    """All that a lookup is given beside the table; ids by name."""
    rest = tuple(argument.name if isinstance(argument, Node) else argument for argument in lookup.args[1:])
    return (*rest, *sorted(lookup.kwargs.items()))
