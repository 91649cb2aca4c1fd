"""Latency: the most exact model that answers a batch fast enough on the machine at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils import _pytree as pytree

from afm_fx.errors import PolicyError
from afm_fx.measure import OnnxFile, benchmark
from afm_fx.planning.allocation import Allocation
from afm_fx.planning.apply_plan import apply_plan
from afm_fx.planning.cost import CostKind
from afm_fx.planning.plan import Evidence
from afm_fx.planning.planning import Decision, PlanningTask, Policy
from afm_fx.program import Program, random_inputs
from afm_fx.runtime import export_onnx, import_runtime, pack, provider_of, require_provider

MAX_EXPORTS = 6
"""Programs that are exported and timed at most."""

CLOSE = 0.97
"""A latency above this share of the limit is near enough to stop."""

SECONDS = 0.5
"""Timed calls of one program, about."""

BATCHES = 8
"""Different random batches that a program is timed on."""


@dataclass(frozen=True)
class Latency(Policy):
    """The ranks that lose least within a median latency, on this machine, in ONNX Runtime, packed.

    The programs are those on the frontier of losses over multiply-adds. A few of them are exported and timed: the
    fastest, the most exact, and those between which the limit then lies, by interpolation over their multiply-adds.
    The latency that the plan states is measured. It is that of random rows that are valid for the model.

    Attributes:
        p50_us: median latency of one batch, in microseconds, at most.
        batch_size: rows of the batch.
        provider: execution provider, by its short name.
        threads: threads within an operator.
    """

    p50_us: float
    batch_size: int = 1
    provider: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.p50_us, int | float) or isinstance(self.p50_us, bool) or not self.p50_us > 0:
            raise PolicyError(f"Latency takes p50_us above 0, got {self.p50_us!r}")
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PolicyError(f"Latency takes a whole number of {name} from 1 on, got {value!r}")

    def choose(self, task: PlanningTask) -> Decision:
        """Ranks within the latency.

        Raises:
            PolicyError: even the fastest model is slower, or there is no such provider here.
            ExportError: a program cannot be exported.
        """
        require_provider(import_runtime(), provider_of(self.provider))
        states = list(task.frontier(CostKind.FLOPS).walk())

        def time(state: Allocation) -> float:
            program = pack(apply_plan(task.program, task.assemble(state.ranks))).program
            return program_p50_us(program, self.batch_size, self.threads, self.provider, SECONDS)

        place, timed = _slowest_within(states, self.p50_us, time)
        if timed[place] > self.p50_us:
            raise PolicyError(
                f"a p50 of {self.p50_us:g} us at batch size {self.batch_size} cannot be reached: the smallest ranks "
                f"take {timed[place]:.1f} us here ({self.provider}, threads: {self.threads})"
            )
        evidence = Evidence(
            "p50 in microseconds", self.p50_us, timed[place], rows=self.batch_size, tried=len(timed),
            conditions=f"ONNX Runtime, packed, {self.provider}, threads: {self.threads}",
        )  # fmt: skip
        return Decision(states[place].ranks, evidence=(evidence,))


def _slowest_within(
    states: Sequence[Allocation], limit: float, time: Callable[[Allocation], float]
) -> tuple[int, dict[int, float]]:
    """The place of the last state that is timed within a limit, or the first, and all that was timed, by place."""
    timed = {0: time(states[0])}
    low, high = 0, len(states) - 1
    if timed[low] > limit or high == low:
        return low, timed
    timed[high] = time(states[high])
    if timed[high] <= limit:
        return high, timed
    # states[low] is fast enough and states[high] is not
    while high - low > 1 and len(timed) < MAX_EXPORTS and timed[low] < CLOSE * limit:
        share = (limit - timed[low]) / (timed[high] - timed[low])
        wanted = states[low].cost + share * (states[high].cost - states[low].cost)
        place = max((each for each in range(low, high) if states[each].cost <= wanted), default=low)
        place = min(max(place, low + 1), high - 1)
        timed[place] = time(states[place])
        low, high = (place, high) if timed[place] <= limit else (low, place)
    return low, timed


def program_p50_us(program: Program, batch_size: int, threads: int, provider: str, seconds: float) -> float:
    """Median latency of a program on random rows that are valid for it, in microseconds.

    Raises:
        ExportError: the program cannot be exported.
        BenchmarkError: there is no such provider here, or it does not run the program.
    """
    rows = BATCHES * batch_size if program.dynamic_batch else batch_size
    inputs = tuple(pytree.tree_leaves(random_inputs(program).draw(rows)))
    with tempfile.TemporaryDirectory() as directory:
        file = OnnxFile(Path(directory) / "program.onnx", provider)
        export_onnx(program, file.path, check=False)
        result = benchmark({"program": file}, inputs, batch_sizes=(batch_size,), threads=threads, seconds=seconds)
    return result.timing("program", batch_size).p50_us
