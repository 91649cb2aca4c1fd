"""Traffic: how often calibration looked up each row of a table, and what that says about the rows it never saw.

Rows that calibration did not see take no part in a covariance over traffic, and may be asked for all the same. How
often, two explanations of their absence say:

* The calibration rows are a sample of all traffic. The share of later lookups that will be of other rows is then
  estimated by ``N_1 / N``, the rows seen exactly once over the lookups (Good, 1953, after Turing).
* They come from a part of the ids (one region, one day, the users of a test). Ids are then as good as exchangeable,
  and the share is that of the rows not seen, ``U / V``.

Nothing in the counts tells the two apart, so the second gets a prior probability :data:`PARTIAL`:

    share = (1 - PARTIAL) N_1 / N + PARTIAL U / V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from afm_fx.calibration.taps import Tap
from afm_fx.errors import CalibrationError
from passes.sites import BAGS, ids_of

MAX_ROWS = 1 << 26
"""Rows of a table up to which each is counted, in 8 bytes; of larger tables nothing is known about coverage."""

PARTIAL = 0.1
"""Prior probability that calibration saw only a part of the ids."""


@dataclass(frozen=True)
class Traffic:
    """How often each row of a table was looked up; mergeable with ``+``.

    Attributes:
        counts: [V] float64.
        pooled: whether the looked up rows are pooled, so that features are not rows of the table.
    """

    counts: Tensor
    pooled: bool = False

    @property
    def rows(self) -> int:
        """Number V of rows."""
        return int(self.counts.shape[0])

    @property
    def seen(self) -> Tensor:
        """[V] bool, the rows that were looked up."""
        return self.counts > 0

    @property
    def rows_seen(self) -> int:
        """Number of rows that were looked up."""
        return int(self.seen.sum())

    @property
    def lookups(self) -> float:
        """Number N of lookups."""
        return float(self.counts.sum())

    @property
    def unseen_share(self) -> float:
        """The share of later lookups to expect on rows not seen; see the head of this file."""
        unseen, lookups = self.rows - self.rows_seen, self.lookups
        if unseen == 0:
            return 0.0
        if lookups == 0:
            return 1.0
        once = int((self.counts == 1).sum())
        return (1 - PARTIAL) * once / lookups + PARTIAL * unseen / self.rows

    def grown_to(self, rows: int) -> Traffic:
        """The traffic of the table with rows added at its end.

        Raises:
            CalibrationError: the table has fewer rows than were counted.
        """
        if rows < self.rows:
            raise CalibrationError(f"{self.rows:,} rows of a table were counted that has {rows:,}")
        return Traffic(torch.cat([self.counts, self.counts.new_zeros(rows - self.rows)]), self.pooled)

    @property
    def coverage(self) -> Coverage:
        """What a plan tells of it."""
        return Coverage(self.rows_seen, self.unseen_share)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.counts + other.counts, self.pooled)


class TrafficCounter:
    """Counts the lookups of tables, batch by batch.

    Args:
        taps: of its sites; those that are no tables, or too large ones, are left out.
    """

    def __init__(self, module: GraphModule, taps: Sequence[Tap]) -> None:
        nodes = {node.name: node for node in module.graph.nodes}
        self._pooled: dict[str, bool] = {}
        self._counts: dict[str, Tensor] = {}
        self._nodes: dict[str, tuple[str, ...]] = {}
        for tap in taps:
            lookups = [_lookup(nodes[place[0]]) for place in tap.places]
            ids = [found for lookup in lookups if (found := ids_of(lookup)) is not None]
            if ids and tap.site.rows <= MAX_ROWS:
                self._nodes[tap.site.name] = tuple(node.name for node in ids)
                self._pooled[tap.site.name] = any(lookup.target in BAGS for lookup in lookups)
                self._counts[tap.site.name] = torch.zeros(tap.site.rows, dtype=torch.float64)

    @property
    def nodes(self) -> frozenset[str]:
        """Names of the nodes that hold ids."""
        return frozenset(name for names in self._nodes.values() for name in names)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds the lookups of a batch, given the values of :attr:`nodes` by name."""
        for table, counts in self._counts.items():
            for node in self._nodes[table]:
                rows = values[node].reshape(-1).cpu().long() % len(counts)  # an index may count from the end
                counts.index_add_(0, rows, torch.ones(len(rows), dtype=counts.dtype))

    def result(self) -> dict[str, Traffic]:
        """The traffic by site name."""
        return {name: Traffic(counts.clone(), self._pooled[name]) for name, counts in self._counts.items()}


@dataclass(frozen=True)
class Coverage:
    """What calibration saw of one table.

    Attributes:
        rows_seen: rows of the table that were looked up.
        expected_unseen: the share of later lookups that bases were made for on rows not looked up.
    """

    rows_seen: int
    expected_unseen: float

    def describe(self, rows: int) -> str:
        """In words, for a table of so many rows."""
        return (
            f"{self.rows_seen:,} of {rows:,} rows seen; {self.expected_unseen:.1%} of later lookups expected on others"
        )


def merged_traffic(one: Mapping[str, Traffic], other: Mapping[str, Traffic]) -> dict[str, Traffic]:
    """The lookups of both, table by table; tables of one joint table share their counts."""
    made = {id(own): own + other[name] for name, own in one.items()}
    return {name: made[id(own)] for name, own in one.items()}


def _lookup(node: torch.fx.Node) -> torch.fx.Node:
    """The operator behind a node of features: a bag's are the first of its results."""
    before = node.args[0] if node.args else None
    return before if isinstance(before, torch.fx.Node) and before.target in BAGS else node
