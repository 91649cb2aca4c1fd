from .apply_plan import apply_plan as apply_plan
from .basis_kind import BasisKind as BasisKind
from .budget import Budget as Budget
from .constant_units import restricted as restricted
from .cost import CostKind as CostKind, RewriteCosts as RewriteCosts
from .latency_policy import Latency as Latency
from .plan import Evidence as Evidence, Plan as Plan, SitePlan as SitePlan
from .planning import (
    MEASURED_ROWS as MEASURED_ROWS,
    SENSITIVITY_ROWS as SENSITIVITY_ROWS,
    Decision as Decision,
    PlanningTask as PlanningTask,
    Policy as Policy,
    make_plan as make_plan,
    require_policy as require_policy,
)
from .policies import Energy as Energy, Fixed as Fixed, FullRank as FullRank
from .refit import Refit as Refit, SiteDrift as SiteDrift, refit_plan as refit_plan
from .simulation import Simulation as Simulation
from .site_bases import SiteBases as SiteBases, SiteErrors as SiteErrors
from .sweep import BUDGETS as BUDGETS, Sweep as Sweep, SweepPoint as SweepPoint, sweep as sweep
from .tolerance import CONFIDENCE as CONFIDENCE, Tolerance as Tolerance
