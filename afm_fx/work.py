"""The work of a rewritten program for one row, as a function of the ranks.

The ledger of parameters (:mod:`passes.parameter_ledger`) knows the shape of every weight that a rewrite makes at any
ranks. How often a row is multiplied by a weight does not depend on ranks, so it is counted once, on a rewrite without
data. What is left, products of codes with codes above all, is taken as it is at the ranks of that rewrite; so an exact
count may differ by a little and is made where it matters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch.fx import GraphModule

from passes.factor import BlankFactor, blank_factor
from passes.graph_tools import clone_graph_module, shape_of
from passes.multiply_adds import multiply_adds, uses_of_parameters
from passes.parameter_ledger import Ranks, Record
from passes.sink_codes import SinkCodes
from passes.sites import Site, SiteKind, find_sites

TYPICAL_RANKS = {SiteKind.EMBEDDING: 4, SiteKind.LINEAR: 32}
"""Ranks at which the work that no weight does is counted."""


@dataclass(frozen=True)
class MatrixProduct:
    """The product of a row's features with one weight.

    Attributes:
        weight: its shape as a function of the ranks.
        positions: how often a row is multiplied by it.
    """

    weight: Record
    positions: float

    def multiply_adds(self, ranks: Ranks) -> float:
        """Multiply-adds for one row."""
        return self.positions * self.weight.count(ranks)


@dataclass(frozen=True)
class TableLookup:
    """Lookups of one table.

    Attributes:
        site: the table.
        positions: how many of its rows are looked up for a row of the batch.
    """

    site: Site
    positions: int

    def width(self, ranks: Ranks) -> int:
        """Numbers read for one position."""
        rank = ranks.get(self.site.name)
        return self.site.width if rank is None else rank


@dataclass(frozen=True)
class WorkLedger:
    """The work for one row as a function of the ranks.

    Attributes:
        products: with weights.
        lookups: of tables.
        other: multiply-adds that no weight takes part in, or one that no rewrite changes.
    """

    products: tuple[MatrixProduct, ...]
    lookups: tuple[TableLookup, ...]
    other: float

    def multiply_adds(self, ranks: Ranks) -> float:
        """About as many multiply-adds are done for one row."""
        return self.other + sum(product.multiply_adds(ranks) for product in self.products)


def work_ledger(module: GraphModule, uncentred: Collection[str]) -> WorkLedger:
    """The work of a graph's rewrite.

    Args:
        module: the graph whose sites may be factored; left as it is.
        uncentred: names of sites that carry no offset although they may.
    """
    sites = [site for site in find_sites(module) if site.refusal is None]
    ranks = {site.name: min(TYPICAL_RANKS[site.kind], max(1, site.width // 2)) for site in sites}
    symbolic = clone_graph_module(module)
    sink = SinkCodes(_blanks(sites, dict.fromkeys(ranks, 1), uncentred), dry=True)
    sink(symbolic)
    uses = uses_of_parameters(symbolic, multiply_adds(symbolic))
    products = tuple(MatrixProduct(record, uses[record.name]) for record in sink.records if uses.get(record.name))
    counted = sum(multiply_adds(blank_rewrite(module, ranks, uncentred)).values())
    shapes = {node.name: shape_of(node) for node in module.graph.nodes}
    lookups = tuple(
        TableLookup(site, sum(_positions(shapes[name]) for name in site.nodes))
        for site in sites
        if site.kind is SiteKind.EMBEDDING
    )
    other = counted - sum(product.multiply_adds(ranks) for product in products)
    return WorkLedger(products, lookups, max(0.0, other))


def blank_rewrite(module: GraphModule, ranks: Ranks, uncentred: Collection[str]) -> GraphModule:
    """A copy of a graph rewritten with these ranks, its new parameters without data."""
    clone = clone_graph_module(module)
    SinkCodes(_blanks(find_sites(module), ranks, uncentred), dry=True)(clone)
    return clone


def _blanks(sites: Iterable[Site], ranks: Ranks, uncentred: Collection[str]) -> dict[str, BlankFactor]:
    return {
        site.name: blank_factor(site.width, rank, centred=site.centred and site.name not in uncentred)
        for site in sites
        if (rank := ranks.get(site.name)) is not None
    }


def _positions(shape: tuple[object, ...] | None) -> int:
    return math.prod(size for size in (shape or ())[:-1] if isinstance(size, int))
