"""Budgets: the most exact model within a share of the original's parameters, bytes or multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afm_fx.errors import PolicyError
from afm_fx.planning.cost import CostKind, cost
from afm_fx.planning.planning import Decision, PlanningTask, Policy
from afm_fx.planning.policies import check_share


@dataclass(frozen=True)
class Budget(Policy):
    """The ranks that lose least within a share of the model's parameters, bytes or multiply-adds: exactly one is given.

    Where logit errors are measured (``basis="measured"``), the loss is the logits' mean squared error; otherwise it is
    the share of its own energy that each site loses. Tables looked up by the same ids then share one code, which saves
    parameters; not so under a budget of multiply-adds, for it saves none and decodes more.
    See :class:`afm_fx.planning.allocation.Frontier` for the way to the ranks. A site whose next rank would cost as much
    as leaving it alone is left alone. Costs are those before packing.

    Attributes:
        parameters: share in (0, 1] of the model's parameters that may remain.
        bytes: share in (0, 1] of the bytes of the model's state (in its number formats, buffers included).
        flops: share in (0, 1] of the multiply-adds for one row (:mod:`afm_fx.planning.multiply_adds`).
    """

    parameters: float | None = None
    bytes: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in CostKind if getattr(self, kind) is not None]
        if len(given) != 1:
            raise PolicyError(f"Budget takes exactly one of parameters, bytes and flops, got {given or 'none'}")
        check_share("Budget", self.share)

    @property
    def kind(self) -> CostKind:
        """What the budget is of."""
        return next(kind for kind in CostKind if getattr(self, kind) is not None)

    @property
    def share(self) -> float:
        """The share that may remain."""
        share: float = getattr(self, self.kind)
        return share

    @property
    def joins_tables(self) -> bool:  # type: ignore[override]  # it depends on the kind of budget
        """Where that saves something."""
        return self.kind is not CostKind.FLOPS

    def describe(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {"policy": "Budget", self.kind.value: self.share}

    def choose(self, task: PlanningTask) -> Decision:
        """Ranks within the budget.

        Raises:
            PolicyError: even the smallest ranks exceed it; the message says the smallest reachable.
        """
        kind, dense = self.kind, cost(task.program.graph_module, self.kind)
        frontier = task.frontier(kind)
        found = frontier.within(self.share * dense, lambda ranks: task.costs.exact(kind, ranks))
        if found is None:
            starts = frontier.smallest(), frontier.cheapest()
            smallest = min(task.costs.exact(kind, start.ranks) for start in starts)
            named = "multiply-adds" if kind is CostKind.FLOPS else kind.value
            raise PolicyError(
                f"a budget of {self.share:g} of {dense:,.0f} {named} cannot be reached: the smallest reachable is "
                f"{smallest / dense:.4f} ({smallest:,.0f} {named})"
            )
        return Decision(found.ranks)
