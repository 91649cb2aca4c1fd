"""A plan applied to a program without its large tables: the low-rank program, and how every table of it is made.

The rewrite is that of :func:`afm_fx.apply_plan`. Where a table is one NaN that is seen under its shape, so are its
codes (:mod:`passes.codes.table_codes`), and what they are to be made of is found by their name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from afm_fx.errors import PlanError
from afm_fx.io import StoredTensor
from afm_fx.large_tables.absent_tables import AbsentTables, storage_of
from afm_fx.planning import Plan, SitePlan, apply_plan
from afm_fx.program import Program
from passes.codes import Factor
from passes.sites import SiteKind


@dataclass(frozen=True)
class TableSource:
    """How a table of the low-rank program is made.

    Attributes:
        name: of its parameter in the low-rank program.
        tables: in the checkpoint, side by side the features of one site.
        dtype: that the model computes in; rows are converted to it first.
        factor: that encodes the rows, None where the table is kept as it is.
    """

    name: str
    tables: tuple[StoredTensor, ...]
    dtype: torch.dtype
    factor: Factor | None

    @property
    def features(self) -> int:
        """Columns of the tables that are read."""
        return sum(table.shape[1] for table in self.tables)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table that is made."""
        return self.tables[0].shape[0], self.features if self.factor is None else self.factor.rank

    def encode(self, parts: list[Tensor]) -> Tensor:
        """Rows of the table that is made, from the same rows of the tables that are read."""
        converted = [part.to(self.dtype) for part in parts]
        if self.factor is not None:
            return self.factor.encode_table(*converted)
        return converted[0] if len(converted) == 1 else torch.cat(converted, dim=1)


@dataclass(frozen=True)
class StreamedPlan:
    """A low-rank program whose large tables are not there yet.

    Attributes:
        tables: how each of them is made, in the order of their names.
        rest: all other parameters and buffers by name.
    """

    program: Program
    tables: tuple[TableSource, ...]
    rest: Mapping[str, Tensor]


def streamed_plan(absent: AbsentTables, plan: Plan) -> StreamedPlan:
    """Applies a plan to a program without its large tables.

    Raises:
        PlanError: the plan belongs to another model, or a rewrite needs the numbers of a large table.
    """
    program = apply_plan(absent.program, plan)
    state = absent.program.graph_module.state_dict()
    large = {storage_of(state[name]): stored for name, stored in absent.tables.items()}
    known = large | {storage_of(state[name]): stored for name, stored in absent.loaded.items()}
    encoded: dict[str, tuple[tuple[StoredTensor, ...], Factor]] = {}
    for site in plan.sites:
        if site.kind is not SiteKind.EMBEDDING or not site.rank:
            continue
        places = [storage_of(state[name]) for name in table_names(site, state)]
        if not large.keys().isdisjoint(places):
            if not known.keys() >= set(places):
                raise PlanError(f"site '{site.name}' joins a table with one that is not in the checkpoint")
            encoded[f"{site.name}.codes.weight"] = tuple(known[place] for place in places), plan.factors[site.name]
    tables: list[TableSource] = []
    rest: dict[str, Tensor] = {}
    given = set(map(storage_of, state.values()))
    for name, tensor in program.graph_module.state_dict().items():
        if storage_of(tensor) in large:
            tables.append(TableSource(name, (large[storage_of(tensor)],), tensor.dtype, None))
        elif name in encoded and _has_nan(tensor):
            tables.append(TableSource(name, encoded[name][0], tensor.dtype, encoded[name][1]))
        elif storage_of(tensor) not in given and _has_nan(tensor):
            raise PlanError(
                f"'{name}' of the low-rank program is not a number: it is computed from a large table's numbers "
                "outside its lookups, which are not loaded, or the checkpoint or plan holds NaN. Load the model whole "
                "and use apply_plan"
            )
        else:
            rest[name] = tensor
    return StreamedPlan(program, tuple(sorted(tables, key=lambda table: table.name)), rest)


def table_names(site: SitePlan, names: Container[str]) -> list[str]:
    """The names of a site's tables among those of a state dict; tables that it does not hold are left out."""
    return [name for table in site.tables or (site.name,) for name in (f"{table}.weight", table) if name in names]


def _has_nan(tensor: Tensor) -> bool:
    if tensor.dim() and tensor.stride(0) == 0:
        tensor = tensor[:1]  # all rows are this one, and a mask of them all would have memory
    return tensor.is_floating_point() and bool(tensor.isnan().any())
