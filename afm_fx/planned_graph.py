"""The graph that a plan is applied to: without the hidden units that leave, and tables with one code joined."""

from __future__ import annotations

from torch.fx import GraphModule

from afm_fx.constant_units import without_units
from afm_fx.plan import Plan
from afm_fx.program import Program
from afm_fx.taps import joined
from passes.factor import Factor, JointFactor
from passes.join_tables import joinable_tables


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
