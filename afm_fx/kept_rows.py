"""Which rows of factored tables keep their features: rare ones, that calibration knows little of, or named ones.

Every row kept costs its own width, and the table a place number per row (:mod:`passes.keep_rows`). Where so many rows
are kept that even a code of one number would not save anything, the table is left as it is, and they are kept with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from afm_fx.calibration import Statistics
from afm_fx.errors import PolicyError
from afm_fx.taps import Tap
from passes.errors import TableIndexError
from passes.factor import blank_factor
from passes.keep_rows import KeepRows, check_keeps_rows
from passes.sites import SiteKind


@dataclass(frozen=True)
class KeptRows:
    """The rows that keep their features.

    Attributes:
        ids: [k] int64, ascending, by site, for the sites that have such rows.
        widths: features of a row of those sites.
        left: why a site is not factored at all, by name.
    """

    ids: Mapping[str, Tensor] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    def mark(self, module: GraphModule) -> None:
        """Keeps the rows in a graph that is only counted in: what is added to the lookups is zero."""
        if self.ids:
            blank = {name: blank_factor(width, 1, centred=False) for name, width in self.widths.items()}
            KeepRows(self.ids, blank)(module)

    def parameters(self, names: Iterable[str]) -> int:
        """Parameters that the rows kept of these sites add: each row, and one of zeros per site."""
        return sum((len(self.ids[name]) + 1) * self.widths[name] for name in names if name in self.ids)


def kept_rows(taps: Iterable[Tap], statistics: Statistics, wanted: int | Mapping[str, Tensor]) -> KeptRows:
    """Resolves what a user asked for.

    Args:
        taps: of the sites that may be factored.
        statistics: of their traffic.
        wanted: keep rows that calibration looked up fewer than so many times, of every table whose lookups it counted
            (none that is looked up by bags); or ids [k] by name of the table.

    Raises:
        PolicyError: a table is unknown or cannot keep rows, or an id is none of its rows.
    """
    tables = {tap.site.name: tap for tap in taps if tap.site.kind is SiteKind.EMBEDDING}
    found = _rare(tables, statistics, wanted) if isinstance(wanted, int) else _named(tables, wanted)
    ids = {name: each for name, each in found.items() if len(each)}
    left = {}
    for name, each in ids.items():
        site = tables[name].site
        least = 2 * site.rows + (len(each) + 1) * site.width  # a code of one number, a place, and the rows themselves
        if least >= site.rows * site.width:
            left[name] = f"{len(each):,} of {site.rows:,} rows would keep their features: no code saves anything"
    ids = {name: each for name, each in ids.items() if name not in left}
    return KeptRows(ids, {name: tables[name].site.width for name in ids}, left)


def _rare(tables: Mapping[str, Tap], statistics: Statistics, below: int) -> dict[str, Tensor]:
    if below < 0 or isinstance(below, bool):
        raise PolicyError(f"rows are kept that were looked up fewer than so many times, 0 or more; got {below!r}")
    return {
        name: (statistics.traffic[name].counts < below).nonzero().flatten()
        for name, tap in tables.items()
        if name in statistics.traffic and tap.site.lowest_rank == 0
    }


def _named(tables: Mapping[str, Tap], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ids by site: a table under a joint code is known by its own name too."""
    owners = {part: name for name, tap in tables.items() if tap.joint is not None for part in tap.joint.tables}
    found: dict[str, Tensor] = {}
    for table, given in wanted.items():
        name = owners.get(table, table)
        if name not in tables:
            raise PolicyError(f"rows of '{table}' are to be kept, which is no table that can be factored")
        site = tables[name].site
        try:
            check_keeps_rows(site)
        except TableIndexError as error:
            raise PolicyError(str(error)) from error
        ids = torch.as_tensor(given, dtype=torch.int64).flatten()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < site.rows:
            raise PolicyError(f"rows to keep of '{table}' are ids from 0 to {site.rows - 1}")
        found[name] = torch.unique(torch.cat([found.get(name, ids[:0]), ids]))
    return found
