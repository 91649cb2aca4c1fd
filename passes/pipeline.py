"""The passes that apply a plan, in order, for a pass manager."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from passes.canonical import Canonicalize, UnifyLinears
from passes.codes import Factor
from passes.graph import GraphPass, PassArgumentError
from passes.sink_codes import SinkCodes
from passes.sites import DropUnits, Units


@runtime_checkable
class HasFactors(Protocol):
    """Anything with factors and hidden units that stay, such as ``afm_fx.Plan``."""

    @property
    def factors(self) -> Mapping[str, Factor]:
        """Factor by site name; a joint table is a site (:mod:`passes.sites.join_tables`)."""
        ...

    @property
    def units(self) -> Mapping[str, Units]:
        """Which hidden units stay, by name of the Linear that makes them; layers that keep all are not named."""
        ...


def pipeline(plan: Mapping[str, Factor] | HasFactors, *, strict: bool = False) -> list[GraphPass]:
    """The passes that apply a plan to a functional ATen graph, for torch's ``PassManager`` or one after the other.

    A model with convolutions of one position has Linears in their place afterwards; run
    :class:`~passes.canonical.pointwise_convolutions.PointwiseConvolutions` once at the very end to have convolutions
    again.

    Other passes may run before, between and after them, as long as they set ``meta["val"]`` on the nodes that they
    make and these keep their order. Running them again changes nothing, so a ``PassManager`` may take several
    steps.

    Args:
        plan: factor per site name, or something that has ``.factors`` and ``.units``.
        strict: raise where the law of an operator fails, instead of restoring features there.

    Raises:
        PassArgumentError: the plan is neither.
    """
    factors = plan if isinstance(plan, Mapping) else plan.factors if isinstance(plan, HasFactors) else None
    if not isinstance(factors, Mapping) or not all(isinstance(factor, Factor) for factor in factors.values()):
        raise PassArgumentError(
            f"a plan is a mapping of site names to passes.Factor or has .factors and .units, got {type(plan).__name__}"
        )
    units = plan.units if isinstance(plan, HasFactors) else {}
    return [Canonicalize(), UnifyLinears(), DropUnits(units), SinkCodes(factors, strict=strict), Canonicalize()]
