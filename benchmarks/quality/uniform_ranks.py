"""The plan that needs no planner: one rank for all tables, one for all Linears, as large as a budget allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

import afm_fx
from afm_fx.planning import CostKind, RewriteCosts, Simulation
from passes.sites import Site, SiteKind, find_sites

TABLE_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)


def best_uniform_plan(
    program: afm_fx.Program, statistics: afm_fx.Statistics, budget: float, basis: str, held_out: Sequence[torch.Tensor]
) -> afm_fx.Plan | None:
    """Of all pairs of ranks that use a budget up, the one with the smallest logit error on held-out rows.

    Args:
        budget: share of the parameters to keep.
        basis: "afm" or "weight_svd".
        held_out: batches of the model's one input.

    Returns:
        None where no pair fits.
    """
    plans = [
        afm_fx.make_plan(program, statistics, policy, basis=basis) for policy in _uniform_policies(program, budget)
    ]
    rows = [(inputs,) for inputs in held_out]
    wanted = Simulation(program, rows, ()).original
    cut = [Simulation(afm_fx.apply_plan(program, plan), rows, (), reference=wanted) for plan in plans]
    errors = [each.error({}) for each in cut]
    return plans[errors.index(min(errors))] if plans else None


def _uniform_policies(program: afm_fx.Program, budget: float) -> Iterator[afm_fx.Fixed]:
    """For every rank of the tables, the largest rank of the Linears that fits, or Linears that are left alone."""
    costs = RewriteCosts(program.graph_module)
    sites = [site for site in find_sites(program.graph_module) if site.refusal is None]
    limit = int(budget * program.parameter_count())
    widest = max((site.width for site in sites if site.kind is SiteKind.LINEAR), default=0)
    for table_rank in TABLE_RANKS:
        for linear_rank in (None, *range(widest // 2, 0, -1)):
            if costs.exact(CostKind.PARAMETERS, _ranks(sites, table_rank, linear_rank)) <= limit:
                yield afm_fx.Fixed(embedding=table_rank, linear=linear_rank)
                break


def _ranks(sites: Sequence[Site], table_rank: int, linear_rank: int | None) -> dict[str, int | None]:
    def of(site: Site) -> int | None:
        rank = table_rank if site.kind is SiteKind.EMBEDDING else linear_rank
        gains = rank is not None and (
            rank < site.width
            if site.kind is SiteKind.EMBEDDING
            else rank * (site.width + site.rows) < site.width * site.rows
        )
        return rank if gains else None

    return {site.name: of(site) for site in sites}
