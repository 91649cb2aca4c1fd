"""Applies a plan to a program: the passes of :func:`passes.pipeline`, and checks that the plan belongs to it."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule

from afm_fx.errors import PlanError
from afm_fx.planning.plan import Plan, SitePlan
from afm_fx.program import Program, require_program
from passes import pipeline
from passes.graph import PassError, clone_graph_module
from passes.sink_codes import SinkCodes
from passes.sites import JointTable, Site, SiteKind, find_sites, joinable_tables


def apply_plan(program: Program, plan: Plan, *, strict: bool = False) -> Program:
    """Applies a plan; the input program is left untouched.

    Tables may have rows added at their end since the plan was made: a factor does not depend on how many there are.

    Args:
        strict: raise where the law of an operator fails. By default features are restored there, and the verdict
            (:func:`afm_fx.explain_plan`) says so.

    Raises:
        PlanError: the plan belongs to another model or to a checkpoint of other shapes, or a law failed.
    """
    require_program(program, "afm_fx.apply_plan")
    module = clone_graph_module(program.graph_module)
    try:
        for each in pipeline(plan, strict=strict):
            if isinstance(each, SinkCodes):
                _check_sites(plan, module)
            each(module)
    except PassError as error:
        raise PlanError(f"the plan does not fit this program: {error}") from error
    return replace(program.with_graph(module), recipe=program.recipe.with_plan(plan.digest))


def _check_sites(plan: Plan, module: GraphModule) -> None:
    """Refuses a plan for another graph than this one, whose hidden units have left already.

    Raises:
        PlanError: a site is not there, or has another shape.
    """
    sites: dict[str, Site | JointTable] = {site.name: site for site in find_sites(module)}
    joint = {table.name: table for table in joinable_tables(module)}
    for planned in plan.sites:
        if not planned.tables:
            check_site(planned, sites.get(planned.name))
        elif planned.rank is not None:  # tables that are left alone are not joined either
            found = joint.get(planned.name)
            check_site(planned, found if found is not None and found.tables == planned.tables else None)


def check_site(planned: SitePlan, site: Site | JointTable | None) -> None:
    """Refuses a plan for another site than a program's; tables may have rows added at their end.

    Raises:
        PlanError: the program has no such site, or one of another shape.
    """
    if site is None or site.kind is not planned.kind:
        raise PlanError(
            f"the plan is for another model: it knows {planned.kind} site '{planned.name}', the program does not"
        )
    shape = site.shape
    grown = site.kind is SiteKind.EMBEDDING and shape[0] > planned.shape[0] and shape[1] == planned.shape[1]
    if shape != planned.shape and not grown:
        raise PlanError(
            f"the plan is for another checkpoint: '{site.name}' is {list(shape)}, in the plan {list(planned.shape)}"
        )
