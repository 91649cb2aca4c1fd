"""Counts the parameters of a rewritten graph as a function of the ranks, without rewriting it again.

The structure of a rewrite does not depend on the ranks, only the sizes of its parameters do. Every parameter that the
rewrite makes is ``rows x columns`` where each extent is a constant plus the code widths of some sites (the rank where
the site is factored, its width where it is left alone). One dry run writes these records down; afterwards any
assignment of ranks is counted by arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Ranks = Mapping[str, int | None]
"""Rank per site; a missing site, or None, is left alone."""


@dataclass(frozen=True)
class Term:
    """A part of a length.

    Attributes:
        site: whose rank it is; empty for dense features.
        width: its length where the site is left alone.
        repeated: whether it is a second view of code columns that are there already; it then adds nothing where the
            site is factored.
        beside: the sites of all codes that were summed to these features, where this is not the first of them: where
            none is factored there is one sum and no second code.
        among: the sites of all codes that went through one map together: where none is factored the map is applied to
            the features themselves, which leaves ``features`` of them.
        features: see ``among``.
        instead: sites without which the features are there in this length, while a code holds them in another one
            (dense features that are read twice, say, are held once).
    """

    site: str
    width: int
    repeated: bool = False
    beside: frozenset[str] = frozenset()
    among: frozenset[str] = frozenset()
    features: int = 0
    instead: frozenset[str] = frozenset()

    def at(self, ranks: Ranks) -> int:
        """The length under an assignment of ranks."""
        if self.instead:
            return 0 if any_factored(self.instead, ranks) else self.width
        rank = ranks.get(self.site)
        if rank is not None:
            return 0 if self.repeated else rank
        if self.among and not any_factored(self.among, ranks):
            return self.features
        return self.width if not self.beside or any_factored(self.beside, ranks) else 0


@dataclass(frozen=True)
class Extent:
    """A length: ``fixed``, plus the terms, plus 1 for every set of ``units`` that holds a factored site."""

    fixed: int = 0
    terms: tuple[Term, ...] = ()
    units: tuple[frozenset[str], ...] = ()

    def at(self, ranks: Ranks) -> int:
        """The length under an assignment of ranks."""
        length = self.fixed + sum(term.at(ranks) for term in self.terms)
        return length + sum(any_factored(sites, ranks) for sites in self.units)

    def factored(self, ranks: Ranks) -> tuple[object, ...]:
        """The terms and units whose sites are factored."""
        terms = [term for term in self.terms if ranks.get(term.site) is not None]
        return (*terms, *(sites for sites in self.units if any_factored(sites, ranks)))


def any_factored(sites: frozenset[str], ranks: Ranks) -> bool:
    """Whether any of the sites has a rank."""
    return any(ranks.get(site) is not None for site in sites)


@dataclass(frozen=True)
class Record:
    """One parameter of ``rows x columns`` numbers.

    Attributes:
        rows: its rows.
        columns: its columns.
        needs: the parameter exists where this is empty or holds a factored site.
        spares: the parameter exists only where none of these sites is factored (they take it into their constants).
        leaves: the parameter exists only where one of these sites is left alone, if there are any.
        origin: the parameter that it replaces, None for a new one. A shared weight that takes in different codes at
            different places becomes several parameters; where none of those codes is factored they are one.
        inputs: the codes that the parameter takes in.
        variant: which of the decoders' constants it takes in. Codes of equal lengths may be decoded by different ones;
            where none of the codes is factored there are none.
    """

    rows: Extent
    columns: Extent
    needs: frozenset[str] = frozenset()
    spares: frozenset[str] = frozenset()
    leaves: frozenset[str] = frozenset()
    origin: str | None = None
    inputs: Extent = Extent()
    variant: int = 0
    name: str = ""

    def count(self, ranks: Ranks) -> int:
        """The number of scalars under an assignment of ranks."""
        if (self.needs and not any_factored(self.needs, ranks)) or any_factored(self.spares, ranks):
            return 0
        if self.leaves and all(ranks.get(site) is not None for site in self.leaves if site):
            return 0
        return self.rows.at(ranks) * self.columns.at(ranks)


@dataclass(frozen=True)
class ParameterLedger:
    """The parameter count of a program as a function of its sites' ranks.

    Attributes:
        untouched: parameters that no rewrite changes.
        records: the parameters that the rewrite makes.
        kept: origins that the rewritten program still uses elsewhere (they are among the untouched).
    """

    untouched: int
    records: tuple[Record, ...]
    kept: frozenset[str] = frozenset()

    def total(self, ranks: Ranks) -> int:
        """Number of parameters of the rewritten program.

        With ranks of 0 it is an upper bound: what only a constant was multiplied by is not needed any more.
        """
        total, seen = self.untouched, set()
        for record in self.records:
            if record.origin is not None:
                factored = record.inputs.factored(ranks)
                key = (record.origin, factored, record.variant if factored else 0)
                if key in seen or (record.origin in self.kept and not factored):
                    continue
                seen.add(key)
            total += record.count(ranks)
        return total
