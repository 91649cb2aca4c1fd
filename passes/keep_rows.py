"""Rows of factored tables that keep their features.

Replaces ``embedding(T, ids)``
with     ``embedding(T, ids) + embedding(R, slots[ids])``

where ``R`` holds, for every row to keep, what a factor leaves out of it, ``T[i] - decode(encode(T[i]))``, behind a row
of zeros, and ``slots`` says for each row of the table which row of ``R`` is its own: 0, the zeros, for the others. Once
the table is factored (:mod:`passes.sink_codes`), the rows kept are what they were, to rounding, and all others what
their codes say.

A sum of a code and dense features is dense, so what reads these features reads them decoded: the table shrinks, the
products behind it do not. That is the price of an exception.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from passes.errors import TableIndexError
from passes.factor import Factor
from passes.graph_pass import GraphPass
from passes.graph_tools import PROVENANCE, aten, buffer, call, derived_name, finish, get_attribute, parameter
from passes.lookups import ids_of
from passes.sites import Site, SiteKind, find_sites

RULE = "keep rows"


class KeepRows(GraphPass):
    """Adds to every lookup of some tables what their factors leave out of some rows.

    It belongs before :class:`passes.sink_codes.SinkCodes` with the same factors: alone it changes those rows.

    Args:
        rows: ids to keep by name of the table, [k] int64, in any order, each once.
        factors: by name of the table; those of other sites are not looked at.
    """

    def __init__(self, rows: Mapping[str, Tensor], factors: Mapping[str, Factor]) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.factors = dict(factors)

    def call(self, graph_module: GraphModule) -> PassResult:
        sites = {site.name: site for site in find_sites(graph_module)}
        changed = False
        for name, ids in self.rows.items():
            site, factor = sites.get(name), self.factors.get(name)
            if site is None:
                raise TableIndexError(f"the graph has no table '{name}'")
            check_keeps_rows(site)
            if factor is None:
                raise TableIndexError(f"table '{name}' has rows to keep, but no factor")
            changed |= len(ids) > 0 and self._keep(graph_module, site, ids.sort().values, factor)
        finish(graph_module)
        return PassResult(graph_module, changed)

    def _keep(self, module: GraphModule, site: Site, ids: Tensor, factor: Factor) -> bool:
        nodes = {node.name: node for node in module.graph.nodes}
        lookups = [nodes[name] for name in site.nodes]
        if all(_is_kept(lookup) for lookup in lookups):
            return False
        if int(ids[0]) < 0 or int(ids[-1]) >= site.rows or bool((ids.diff() == 0).any()):
            raise TableIndexError(f"the rows to keep of '{site.name}' must be ids from 0 to {site.rows - 1}, each once")
        table = get_attribute(module, site.parameter)
        left_out = factor.left_out(table, ids.to(table.device))
        residuals = torch.cat([left_out.new_zeros((1, site.width)), left_out])
        slots = torch.zeros(site.rows, dtype=torch.int32, device=table.device)
        slots[ids.to(table.device)] = torch.arange(1, len(ids) + 1, dtype=torch.int32, device=table.device)
        weight = parameter(module, derived_name(site.parameter, "kept"), residuals, rule=RULE)
        places = buffer(module, derived_name(site.parameter, "kept", "slots"), slots, rule=RULE)
        for lookup in lookups:
            _add(module, lookup, weight, places)
        return True


def check_keeps_rows(site: Site) -> None:
    """Checks that single rows of a table can be kept.

    Raises:
        TableIndexError: the site is a Linear, or its rows are pooled before anything else sees them.
    """
    if site.kind is not SiteKind.EMBEDDING or site.lowest_rank > 0:
        kind = "is a Linear" if site.kind is SiteKind.LINEAR else "is looked up by bags"
        raise TableIndexError(f"'{site.name}' {kind}: only rows that are looked up one by one can be kept")


def _add(module: GraphModule, lookup: Node, weight: Node, places: Node) -> None:
    ids = ids_of(lookup)
    if ids is None:
        raise TableIndexError(f"node '{lookup.name}' is no lookup of single rows")
    users = list(lookup.users)
    with module.graph.inserting_after(lookup):
        place = call(module.graph, aten.index.Tensor, places, [ids], rule=RULE, like=lookup)
    with module.graph.inserting_after(place):
        rest = call(module.graph, aten.embedding.default, weight, place, rule=RULE, like=lookup)
    with module.graph.inserting_after(rest):
        total = call(module.graph, aten.add.Tensor, lookup, rest, rule=RULE, like=lookup)
    for user in users:
        user.replace_input_with(lookup, total)


def _is_kept(lookup: Node) -> bool:
    """Whether nothing but the sum that this pass made reads a lookup."""
    readers = list(lookup.users)
    return len(readers) == 1 and readers[0].target is aten.add.Tensor and readers[0].meta.get(PROVENANCE) == RULE
