"""Latency: the most exact model that answers a batch fast enough on the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from afm_fx.allocation import Allocation, Frontier
from afm_fx.call_times import program_p50_us
from afm_fx.compression import apply_plan
from afm_fx.errors import PolicyError
from afm_fx.evidence import Evidence
from afm_fx.latency_table import LatencyTable, measured_table
from afm_fx.onnx_runtime import import_runtime, provider_of, require_provider
from afm_fx.packing import pack
from afm_fx.policies import choices_of
from afm_fx.situation import Decision, Situation
from afm_fx.work import WorkLedger

MAX_EXPORTS = 6
"""Programs that are exported and timed at most."""

CLOSE = 0.97
"""A latency above this share of the limit is near enough to stop."""

REACH = 3.0
"""The frontier is walked up to this many times the microseconds that are predicted to be left."""

SECONDS = 0.5
"""Timed calls of one program, about."""


@dataclass(frozen=True)
class Latency:
    """The ranks that lose least within a median latency, on this machine, in ONNX Runtime, packed.

    What a rank costs is interpolated from a table of measured matrix products and lookups
    (:mod:`afm_fx.latency_table`). What the table does not hold (launches, elementwise work) is the difference to the
    first program that is exported and timed; up to five more correct what is left. The latency that the plan states is
    measured, beside the predicted one. It is that of random rows that are valid for the model.

    Attributes:
        p50_us: median latency of one batch, in microseconds, at most.
        batch_size: rows of the batch.
        provider: execution provider, by its short name.
        threads: threads within an operator.
        seconds: timed calls of one program, about.
        table: a table that was measured on this machine before, None to measure one.
    """

    measures: ClassVar[bool] = True

    p50_us: float
    batch_size: int = 1
    provider: str = "cpu"
    threads: int = 1
    seconds: float = SECONDS
    table: LatencyTable | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("p50_us", "seconds"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise PolicyError(f"Latency takes {name} above 0, got {value!r}")
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PolicyError(f"Latency takes a whole number of {name} from 1 on, got {value!r}")

    @property
    def joins_tables(self) -> bool:
        """One code for tables of one index saves no time: a packed row holds both anyway."""
        return False

    def describe(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {
            "policy": "Latency", "p50_us": self.p50_us, "batch_size": self.batch_size, "provider": self.provider,
            "threads": self.threads,
        }  # fmt: skip

    def choose(self, situation: Situation) -> Decision:
        """Ranks within the latency.

        Raises:
            PolicyError: even the fastest model is slower, or there is no such provider here.
            ExportError: a program cannot be exported.
        """
        provider = require_provider(import_runtime(), provider_of(self.provider)).name
        if situation.costs is None:
            raise PolicyError("a latency needs a program to measure")
        work = situation.costs.work
        table = self.table or measured_table(self.batch_size, provider, self.threads, _largest(work, situation))
        frontier = Frontier(
            situation.sites,
            {site.name: situation.levels(site) for site in situation.sites},
            situation.loss,
            lambda ranks: table.predicted_us(work, ranks),
            negligible=situation.negligible_loss(),
        )
        return _Race(self, situation, frontier, provider).decide()


class _Race:
    """Times programs on the frontier until the slowest within the limit is found."""

    def __init__(self, policy: Latency, situation: Situation, frontier: Frontier, provider: str) -> None:
        self._policy, self._situation, self._frontier, self._provider = policy, situation, frontier, provider
        self._timed: dict[int, float] = {}
        self._states: list[Allocation] = []

    def decide(self) -> Decision:
        limit = self._policy.p50_us
        first = self._frontier.cheapest()
        self._states = [first]
        fastest = self._time(0)
        if fastest > limit:
            raise PolicyError(
                f"a p50 of {limit:g} us at batch size {self._policy.batch_size} cannot be reached: the smallest "
                f"ranks take {fastest:.1f} us here ({self._policy.provider}, threads: {self._policy.threads})"
            )
        other = fastest - first.cost
        self._states = list(self._frontier.walk(first.cost + REACH * (limit - fastest)))
        low, high = 0, len(self._states)  # states[low] is fast enough; states[high], where there is one, is not
        while high - low > 1 and len(self._timed) < MAX_EXPORTS and self._timed[low] < CLOSE * limit:
            place = self._guess(low, high)
            low, high = (place, high) if self._time(place) <= limit else (low, place)
        state = self._states[low]
        evidence = Evidence(
            "p50 in microseconds", limit, self._timed[low], state.cost + other,
            rows=self._policy.batch_size, tried=len(self._timed),
            conditions=f"ONNX Runtime, packed, {self._policy.provider}, threads: {self._policy.threads}",
        )  # fmt: skip
        return Decision(choices_of(self._situation, state), (evidence,), final=True)

    def _guess(self, low: int, high: int) -> int:
        """Where the limit lies between two states, by what they took, and predictions where nothing was timed."""
        limit, costs = self._policy.p50_us, [state.cost for state in self._states]
        slope = 1.0
        if high in self._timed and costs[high] > costs[low]:
            slope = max((self._timed[high] - self._timed[low]) / (costs[high] - costs[low]), 1e-9)
        elif low > 0 and costs[low] > costs[0]:
            slope = max((self._timed[low] - self._timed[0]) / (costs[low] - costs[0]), 1e-9)
        wanted = costs[low] + (limit - self._timed[low]) / slope
        place = max((each for each in range(low, high) if costs[each] <= wanted), default=low)
        return min(max(place, low + 1), high - 1)

    def _time(self, place: int) -> float:
        program, assemble = self._situation.program, self._situation.assemble
        if program is None or assemble is None:
            raise PolicyError("a latency needs a program to measure")
        made = apply_plan(program, assemble(choices_of(self._situation, self._states[place])))
        policy = self._policy
        spent = program_p50_us(pack(made).program, policy.batch_size, policy.threads, self._provider, policy.seconds)
        self._timed[place] = spent
        return spent


def _largest(work: WorkLedger, situation: Situation) -> int:
    """The longest side of any weight at any ranks."""
    widths: Mapping[str, int] = {site.name: site.width for site in situation.sites}
    sides = (
        side.at(ranks)
        for product in work.products
        for side in (product.weight.rows, product.weight.columns)
        for ranks in (widths, {})
    )
    return max(sides, default=1)
