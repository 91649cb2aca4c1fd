"""What a program costs: its parameters, its bytes, its multiply-adds and operators; and what a rewrite makes of them.

:func:`cost` counts a graph. A search over ranks asks thousands of times, so it goes by an estimate that is read off one
rewrite without data. Every parameter that a rewrite makes has ``rows x columns`` numbers, where either length is a
constant plus the code widths of some sites: their ranks, or all their features where they are left alone. With a price
per number (1, its bytes, or how many multiply-adds for a row it takes part in) the cost is

    constant + sum over parameters of price * rows(ranks) * columns(ranks).

While every site is factored that is exact for parameters and bytes. A site that is left alone may change what becomes
of the others (a sum of codes and dense features is dense), and products of codes with codes have no parameter that
would tell how they grow; so what must be kept is checked with :meth:`RewriteCosts.exact`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from torch import Tensor
from torch.fx import GraphModule

from afm_fx.planning.multiply_adds import multiply_adds, uses_of_parameters
from passes.codes import NewParameter
from passes.sink_codes import Analysis, analyze
from passes.sites import SiteKind, find_sites

Ranks = Mapping[str, int | None]
"""Rank by site name; a site that is not there, or None, is left alone."""

TYPICAL_RANKS = {SiteKind.EMBEDDING: 4, SiteKind.LINEAR: 32}
"""Ranks of the rewrite that estimates are read off."""


class CostKind(StrEnum):
    """What a program may be allowed little of."""

    PARAMETERS = "parameters"
    BYTES = "bytes"
    FLOPS = "flops"


def cost(module: GraphModule, kind: CostKind) -> float:
    """Parameters, bytes of all state, or multiply-adds for one row of a batch; the state may be without data."""
    match kind:
        case CostKind.PARAMETERS:
            return sum(parameter.numel() for parameter in module.parameters())
        case CostKind.BYTES:
            return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
        case CostKind.FLOPS:
            return sum(multiply_adds(module).values())


def operators(module: GraphModule) -> int:
    """How many operators a graph calls."""
    return sum(node.op == "call_function" for node in module.graph.nodes)


class RankCost:
    """One cost of a rewritten program as a function of its sites' ranks.

    Args:
        weights: the parameters whose size or presence depends on ranks, with their prices.
    """

    def __init__(self, weights: Iterable[_Weight], ranks: Ranks, total: float) -> None:
        self._weights = [weight for weight in weights if weight.price]
        self._constant = total - sum(weight.at(ranks) for weight in self._weights)
        self._depending: dict[str, list[_Weight]] = {}
        for weight in self._weights:
            for site in weight.sites:
                self._depending.setdefault(site, []).append(weight)

    def __call__(self, ranks: Ranks) -> float:
        """The cost at some ranks."""
        return self._constant + sum(weight.at(ranks) for weight in self._weights)

    def change(self, ranks: Ranks, name: str, rank: int | None) -> float:
        """How much more it costs with another rank for one site; looks at what depends on that site alone."""
        changed = {**ranks, name: rank}
        return sum(weight.at(changed) - weight.at(ranks) for weight in self._depending.get(name, ()))


@dataclass(frozen=True)
class _Length:
    """A constant plus the code widths of some sites."""

    constant: int
    parts: tuple[tuple[str, int], ...]

    def at(self, ranks: Ranks) -> int:
        length = self.constant
        for site, width in self.parts:
            rank = ranks.get(site)
            length += width if rank is None else rank
        return length


@dataclass(frozen=True)
class _Weight:
    """A parameter's numbers times the price of one.

    It is there where one of ``needs`` is factored, or one of ``alone`` is left alone, if either names any sites.
    """

    price: float
    rows: _Length
    columns: _Length
    needs: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()

    @staticmethod
    def of(made: NewParameter, ranks: Mapping[str, int], price: float) -> _Weight:
        sizes = (*made.shape, 1)[:2]
        rows, columns = (
            _Length(size - sum(ranks[site] for site, _ in parts), parts)
            for size, parts in zip(sizes, (made.rows, made.columns), strict=True)
        )
        return _Weight(price, rows, columns, made.needs)

    @property
    def sites(self) -> frozenset[str]:
        return self.needs | self.alone | {site for site, _ in (*self.rows.parts, *self.columns.parts)}

    def at(self, ranks: Ranks) -> float:
        if self.needs and all(ranks.get(site) is None for site in self.needs):
            return 0
        if self.alone and all(ranks.get(site) is not None for site in self.alone):
            return 0
        return self.price * self.rows.at(ranks) * self.columns.at(ranks)


class RewriteCosts:
    """The costs of a graph's rewrites; each estimate is made when it is first asked for.

    Args:
        module: the graph whose sites may be factored; it is left as it is.
        uncentred: names of sites that carry no offset although they may.
    """

    def __init__(self, module: GraphModule, uncentred: Collection[str] = ()) -> None:
        self._module, self._uncentred = module, frozenset(uncentred)
        self._estimates: dict[CostKind, RankCost] = {}
        self._counted: dict[tuple[CostKind, frozenset[tuple[str, int | None]]], float] = {}

    @cached_property
    def analysis(self) -> Analysis:
        """The rewrite that estimates are read off."""
        return analyze(self._module, uncentred=self._uncentred, ranks=self._ranks)

    @cached_property
    def _ranks(self) -> dict[str, int]:
        sites = find_sites(self._module)
        return {site.name: min(TYPICAL_RANKS[site.kind], site.width) for site in sites if site.refusal is None}

    def estimate(self, kind: CostKind) -> RankCost:
        """The cost as a function of the ranks, to search with."""
        if kind not in self._estimates:
            rewritten = self.analysis.rewritten
            uses = uses_of_parameters(rewritten, multiply_adds(rewritten)) if kind is CostKind.FLOPS else {}

            def price(name: str, like: Tensor) -> float:
                return {CostKind.PARAMETERS: 1, CostKind.BYTES: like.element_size()}.get(kind, uses.get(name, 0.0))

            parameters = dict(rewritten.named_parameters())
            made = [
                _Weight.of(each, self._ranks, price(each.name, parameters[each.name])) for each in self.analysis.made
            ]
            spared = [
                _Weight(price(name, weight), _Length(weight.numel(), ()), _Length(1, ()), alone=sites)
                for name, sites in self.analysis.spared.items()
                if sites and name not in parameters
                for weight in [self._module.get_parameter(name)]
            ]
            self._estimates[kind] = RankCost([*made, *spared], self._ranks, cost(rewritten, kind))
        return self._estimates[kind]

    def exact(self, kind: CostKind, ranks: Ranks) -> float:
        """The cost of the program that these ranks make: it is made, without data, and counted."""
        key = (kind, frozenset(ranks.items()))
        if key not in self._counted:
            self._counted[key] = cost(analyze(self._module, uncentred=self._uncentred, ranks=ranks).rewritten, kind)
        return self._counted[key]
