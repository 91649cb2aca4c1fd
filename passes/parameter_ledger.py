"""Counts the parameters of a rewritten graph as a function of the ranks, without rewriting it again.

The structure of a rewrite does not depend on the ranks, only the sizes of its parameters do. Every parameter that the
rewrite makes is ``rows x columns`` where each extent is a constant plus the code widths of some sites (the rank where
the site is factored, its width where it is left alone). One dry run writes these records down; afterwards any
assignment of ranks is counted by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from passes.low_rank_value import Block

Ranks = Mapping[str, int | None]
"""Rank per site; a missing site, or None, is left alone."""


@dataclass(frozen=True)
class Extent:
    """A length: ``fixed`` plus, for each term (site, width), the site's rank, or the width where it is left alone."""

    fixed: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, ranks: Ranks) -> int:
        """The length under an assignment of ranks."""
        length = self.fixed
        for site, width in self.terms:
            rank = ranks.get(site)
            length += width if rank is None else rank
        return length

    def factored(self, ranks: Ranks) -> tuple[str, ...]:
        """The terms whose sites are factored."""
        return tuple(site for site, _ in self.terms if ranks.get(site) is not None)


def extent_of(blocks: Iterable[Block]) -> Extent:
    """The code width of a sequence of blocks."""
    fixed, terms = 0, []
    for block in blocks:
        if block.site is None:
            fixed += block.width
        else:
            terms.append((block.site, block.width))
    return Extent(fixed, tuple(terms))


@dataclass(frozen=True)
class Record:
    """One parameter of ``rows x columns`` numbers.

    Attributes:
        rows: its rows.
        columns: its columns.
        needs: the parameter exists where this is empty or holds a factored site.
        origin: the parameter that it replaces, None for a new one. A shared weight that takes in different codes at
            different places becomes several parameters; where none of those codes is factored they are one.
        inputs: the codes that the parameter takes in.
    """

    rows: Extent
    columns: Extent
    needs: frozenset[str] = frozenset()
    origin: str | None = None
    inputs: Extent = Extent()

    def count(self, ranks: Ranks) -> int:
        """The number of scalars under an assignment of ranks."""
        if self.needs and all(ranks.get(site) is None for site in self.needs):
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
        """Number of parameters of the rewritten program."""
        total, seen = self.untouched, set()
        for record in self.records:
            if record.origin is not None:
                key = (record.origin, record.inputs.factored(ranks))
                if key in seen or (record.origin in self.kept and not key[1]):
                    continue
                seen.add(key)
            total += record.count(ranks)
        return total
