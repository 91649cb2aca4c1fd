"""Tables that several processes hold: each encodes what it has, and nothing of a table travels.

A row-sharded ``DTensor`` gives codes that are sharded in the same way; a table that one process owns whole is encoded
there, and the others do not have it. :func:`encode_sharded` does so to a state dict, for who has a serving stack of
their own. A whole low-rank program of sharded tables is ``apply_plan(with_tables(program, state_dict), plan)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from afm_fx.errors import PlanError
from afm_fx.plan import Plan, SitePlan
from afm_fx.program import Program
from passes.errors import PassError
from passes.factor import Factor
from passes.sites import SiteKind
from passes.table_codes import encode_table, is_sharded, replicated


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
        names = _names(site, state_dict)
        if not names:
            continue
        parts = [_checked(name, state_dict[name]) for name in names]
        _check_shape(site, parts)
        for name in names:
            del encoded[name]
        encoded |= _encoded(site, plan.factors[site.name], parts)
    return encoded


def with_tables(program: Program, tables: Mapping[str, Tensor]) -> Program:
    """The same program with other tensors, sharded ones for instance, as some of its parameters.

    A model whose tables fit no process is captured with tables that hold one number,
    ``torch.zeros(()).expand(rows, width)``, and gets its own here.

    Args:
        program: left as it is.
        tables: by parameter name; of the parameters' shapes and number formats. Other entries are left out, so that a
            whole state dict may be given.

    Raises:
        PlanError: a tensor has another shape or number format than the parameter.
    """
    twin = program.clone()
    for name, parameter in list(twin.graph_module.named_parameters()):
        if name not in tables:
            continue
        given = tables[name].detach()
        if given.shape != parameter.shape or given.dtype != parameter.dtype:
            raise PlanError(
                f"'{name}' is {list(given.shape)} in {given.dtype}, the program's is {list(parameter.shape)} in "
                f"{parameter.dtype}"
            )
        owner, _, leaf = name.rpartition(".")
        twin.graph_module.get_submodule(owner).register_parameter(leaf, nn.Parameter(given, parameter.requires_grad))
    return twin


def _names(site: SitePlan, state_dict: Mapping[str, Tensor]) -> list[str]:
    """The names of a site's tables here, none where another process has them."""
    tables = site.tables or (site.name,)
    found = [name for table in tables for name in (f"{table}.weight", table) if name in state_dict]
    if found and len(found) < len(tables):
        missing = next(table for table in tables if not {f"{table}.weight", table} & set(found))
        raise PlanError(
            f"'{site.name}' is one code for tables {list(tables)}, and '{missing}' is not here: keep them in one "
            "process, or make the plan without joint codes (basis other than 'measured')"
        )
    return found


def _checked(name: str, tensor: Any) -> Tensor:
    if not is_sharded(tensor) and type(tensor) not in {Tensor, nn.Parameter}:
        raise PlanError(
            f"'{name}' is a {type(tensor).__name__}; a table is a plain tensor, or a DTensor where it is sharded"
        )
    return tensor.detach()  # type: ignore[no-any-return]


def _check_shape(site: SitePlan, parts: list[Tensor]) -> None:
    rows, width = {int(part.shape[0]) for part in parts}, sum(int(part.shape[1]) for part in parts)
    if rows != {site.shape[0]} or width != site.shape[1]:
        raise PlanError(
            f"the plan is for another checkpoint: '{site.name}' is {[list(part.shape) for part in parts]}, in the plan "
            f"{list(site.shape)}"
        )


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
