"""A plan applied to a program without its large tables: the low-rank program, and how to make each table of it.

The rewrite is that of :func:`afm_fx.apply_plan`. Only the codes of large tables are not computed in it: they stand in
the result as one NaN each, beside a note of which rows of the checkpoint they are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from afm_fx.absent_tables import AbsentTables, stand_in, storage_of
from afm_fx.checkpoints import StoredTensor
from afm_fx.compression import apply_factors
from afm_fx.errors import PlanError
from afm_fx.plan import Plan
from afm_fx.plan_digest import factor_digest
from afm_fx.program import Program
from passes.factor import Factor, JointFactor
from passes.sites import SiteKind, find_sites


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
    def rows(self) -> int:
        """Rows of the table."""
        return self.tables[0].shape[0]

    @property
    def width(self) -> int:
        """Columns of the table that is made."""
        if self.factor is not None:
            return self.factor.rank
        return sum(table.shape[1] for table in self.tables)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the table that is made."""
        return self.width * self.dtype.itemsize

    @property
    def source_bytes(self) -> int:
        """Bytes of the tables that are read."""
        return sum(table.bytes for table in self.tables)

    @property
    def recipe(self) -> str:
        """The digest of what is done to the rows."""
        return f"{self.dtype} " + ("as it is" if self.factor is None else factor_digest(self.factor))

    def features(self, parts: list[Tensor]) -> Tensor:
        """The features [rows, n] of rows of the tables."""
        converted = [part.to(self.dtype) for part in parts]
        return converted[0] if len(converted) == 1 else torch.cat(converted, dim=1)

    def made(self, features: Tensor) -> Tensor:
        """The rows of the table that is made, for rows of features."""
        return features if self.factor is None else self.factor.encode_table(features)


@dataclass(frozen=True)
class StreamedPlan:
    """A low-rank program whose large tables are not there yet.

    Attributes:
        program: the program, with stand-ins for them.
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
    state = absent.program.graph_module.state_dict()
    places = {storage_of(state[name]): stored for name, stored in absent.tables.items()}
    stored = places | {storage_of(state[name]): each for name, each in absent.loaded.items()}
    noted: dict[int, tuple[tuple[StoredTensor, ...], Factor | None]] = {
        place: ((table,), None) for place, table in places.items()
    }
    spoilt: list[str] = []
    held: list[Tensor] = []  # so that no other tensor comes to lie where a stand-in was

    def note(module: GraphModule, factors: Mapping[str, Factor]) -> dict[str, Factor]:
        """Factors that note what they would encode, in place of those of large tables."""
        sites = {site.name: site for site in find_sites(module) if site.kind is SiteKind.EMBEDDING}
        changed = dict(factors)
        for name, factor in factors.items():
            if name not in sites or (factor.rank == 0):
                continue
            given = (module.get_parameter(sites[name].parameter),)
            tensors = factor.tables if isinstance(factor, JointFactor) else given
            if not any(storage_of(tensor) in places for tensor in tensors):
                continue
            known = tuple(stored[storage_of(tensor)] for tensor in tensors if storage_of(tensor) in stored)
            if len(known) < len(tensors):
                raise PlanError(f"site '{name}' joins a table with one that is not in the checkpoint")
            codes = stand_in((given[0].shape[0], factor.rank), given[0].dtype)
            plain = Factor(factor.encoder, factor.decoder, factor.shift, factor.offset)
            held.append(codes)
            noted[storage_of(codes)] = (known, plain)
            changed[name] = _NotedFactor(factor.encoder, factor.decoder, factor.shift, factor.offset, codes)
        return changed

    before = {storage_of(tensor) for tensor in state.values()}
    program = apply_factors(absent.program, plan, note)
    tables: list[TableSource] = []
    rest: dict[str, Tensor] = {}
    for name, tensor in program.graph_module.state_dict().items():
        found = noted.get(storage_of(tensor))
        if found is not None:
            tables.append(TableSource(name, found[0], tensor.dtype, found[1]))
            continue
        rest[name] = tensor
        if tensor.is_floating_point() and storage_of(tensor) not in before and bool(tensor.isnan().any()):
            spoilt.append(name)
    if spoilt:
        raise PlanError(
            f"'{spoilt[0]}' of the low-rank program is not a number: it is computed from a large table's numbers "
            "outside its lookups, which are not loaded, or the checkpoint or plan holds NaN. Load the model whole and "
            "use apply_plan"
        )
    return StreamedPlan(program, tuple(sorted(tables, key=lambda table: table.name)), rest)


@dataclass(frozen=True)
class _NotedFactor(Factor):
    """A factor whose codes are computed elsewhere.

    Attributes:
        codes: what stands for them.
    """

    codes: Tensor = field(default_factory=lambda: torch.empty(0))

    def encode_table(self, table: Tensor) -> Tensor:  # noqa: ARG002 - nothing is read of it
        """What stands for the codes."""
        return self.codes
