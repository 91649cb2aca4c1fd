"""Tables that several processes hold: each encodes what it has, and nothing of a table travels.

A row-sharded ``DTensor`` gives codes that are sharded in the same way; a table that one process owns whole is encoded
there, and the others do not have it. :func:`encode_sharded` does so to a state dict, for who has a serving stack of
their own. A whole low-rank program of sharded tables is ``apply_plan(with_tables(program, state_dict), plan)``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from afm_fx.errors import PlanError
from afm_fx.large_tables.streamed_plan import table_names
from afm_fx.planning import Plan, SitePlan
from passes.codes import Factor, encode_table, is_sharded, replicated
from passes.graph import PassError
from passes.sites import SiteKind


def encode_sharded(plan: Plan, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces the tables of a state dict by their codes under a plan.

    Rows that a process holds are encoded where they lie, in float64 and in blocks; a table sharded by columns takes one
    reduction of its narrow partial codes, after which its codes are sharded by rows.

    Args:
        plan: made for the model, on statistics of any number of processes.
        state_dict: tensors by the names of the model that the plan was made for: ``DTensor`` where a table is sharded.
            Tables that are not in it belong to another process.

    Returns:
        The state dict with, in place of every table [V, n] that the plan gives a rank r, ``SITE.codes.weight`` [V, r],
        on the mesh and with the placements of the table; ``SITE.decoder.weight`` [n, r]; and ``SITE.decoder.bias`` [n]
        where the code has an offset: ``codes[ids] @ weight.T + bias`` is about the table's rows. At rank 0 there is the
        bias alone, which stands for every row. Decoders of sharded tables are replicated on their mesh. Everything
        else, refused tables and Linears too, is the given tensor itself.

    Raises:
        PlanError: the plan is for tables of other shapes, or tables under one code do not lie together.
    """
    encoded = dict(state_dict)
    for site in plan.sites:
        if site.kind is not SiteKind.EMBEDDING or site.rank is None:
            continue
        tables = _tables_here(site, state_dict)
        for name in tables:
            del encoded[name]
        if tables:
            encoded |= _encoded(site, plan.factors[site.name], list(tables.values()))
    return encoded


def _tables_here(site: SitePlan, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A site's tables by name, none where another process has them."""
    planned = site.tables or (site.name,)
    names = table_names(site, state_dict)
    if names and len(names) < len(planned):
        missing = next(table for table in planned if not {f"{table}.weight", table} & set(names))
        raise PlanError(
            f"'{site.name}' is one code for tables {list(planned)}, and '{missing}' is not here: keep them in one "
            "process, or make the plan without joint codes (basis other than 'measured')"
        )
    tables = {name: state_dict[name].detach() for name in names}
    for name, table in tables.items():
        if not is_sharded(table) and type(state_dict[name]) not in {Tensor, nn.Parameter}:
            raise PlanError(
                f"'{name}' is a {type(table).__name__}; a table is a plain tensor, or a DTensor where it is sharded"
            )
    rows, width = {len(table) for table in tables.values()}, sum(table.shape[1] for table in tables.values())
    if tables and (len(rows) > 1 or min(rows) < site.shape[0] or width != site.shape[1]):
        raise PlanError(
            f"the plan is for another checkpoint: '{site.name}' is {[list(each.shape) for each in tables.values()]}, "
            f"in the plan {list(site.shape)}"
        )
    return tables


def _encoded(site: SitePlan, factor: Factor, parts: list[Tensor]) -> dict[str, Tensor]:
    made = {}
    if factor.rank:
        try:
            made["codes.weight"] = encode_table(factor.encoder, factor.shift, parts)
        except PassError as error:
            raise PlanError(f"'{site.name}' cannot be encoded: {error}") from error
        made["decoder.weight"] = _beside(factor.decoder, parts[0])
    if factor.offset is not None:
        made["decoder.bias"] = _beside(factor.offset, parts[0])
    return {f"{site.name}.{name}": tensor for name, tensor in made.items()}


def _beside(tensor: Tensor, table: Tensor) -> Tensor:
    """A small tensor in a table's number format, on its device, on every process of its mesh."""
    if is_sharded(table):
        return replicated(tensor.to(table.dtype), table)  # type: ignore[arg-type]
    return tensor.to(device=table.device, dtype=table.dtype)
