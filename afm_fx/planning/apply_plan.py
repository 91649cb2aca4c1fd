"""Applies a plan: hidden units leave, tables with one code are joined, and every site gets its factor."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule

from afm_fx.calibration import joined
from afm_fx.errors import PlanError
from afm_fx.planning.constant_units import without_units
from afm_fx.planning.plan import Plan, SitePlan
from afm_fx.program import Program, require_program
from passes.canonical import Canonicalize
from passes.codes import Factor, JointFactor
from passes.graph import PassError
from passes.sink_codes import SinkCodes
from passes.sites import Site, SiteKind, find_sites, joinable_tables


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
    try:
        clone, factors = planned_graph(program, plan)
        sites = {site.name: site for site in find_sites(clone)}
        for planned in plan.sites:
            if planned.rank is not None or not planned.tables:
                check_site(planned, sites.get(planned.name))
        SinkCodes(factors, strict=strict)(clone)
    except PassError as error:
        raise PlanError(f"the plan does not fit this program: {error}") from error
    Canonicalize()(clone)
    return replace(program.with_graph(clone), recipe=program.recipe.with_plan(plan.digest))


def check_site(planned: SitePlan, site: Site | None) -> None:
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


def planned_graph(program: Program, plan: Plan) -> tuple[GraphModule, dict[str, Factor]]:
    """The graph whose sites a plan names, and the plan's factors; parameters are shared, the program is left as it is.

    Joint tables have no data of their own there: their factors encode the tables that they are made of.

    Raises:
        PassError: the plan belongs to another program.
    """
    module = without_units(program, plan.units).graph_module
    factors = dict(plan.factors)
    found = {joint.name: joint for joint in joinable_tables(module)}
    for planned in plan.sites:
        joint = found.get(planned.name)
        if not planned.tables or planned.rank is None or joint is None or joint.tables != planned.tables:
            continue
        factor = factors[planned.name]
        tables = tuple(module.get_parameter(name).detach() for name in joint.parameters)
        factors[planned.name] = JointFactor(factor.encoder, factor.decoder, factor.shift, factor.offset, tables)
    return joined(module, [name for name, factor in factors.items() if isinstance(factor, JointFactor)]), factors
