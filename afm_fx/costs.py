"""What a rewritten program costs at given ranks: parameters, bytes, multiply-adds."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from functools import cached_property

from torch.fx import GraphModule

from afm_fx.allocation import Cost
from afm_fx.program import Program
from afm_fx.work import WorkLedger, blank_rewrite, work_ledger
from passes.multiply_adds import multiply_adds
from passes.parameter_ledger import ParameterLedger, Ranks


class CostKind(StrEnum):
    """What a program may be allowed little of."""

    PARAMETERS = "parameters"
    BYTES = "bytes"
    FLOPS = "flops"


class Costs:
    """The costs of a program as functions of its sites' ranks; each is worked out when first asked for.

    Two forms of each: :meth:`estimate` is arithmetic, for a search over thousands of ranks; :meth:`exact` rewrites a
    copy without data and counts. All are those of the program before packing.

    Args:
        program: the original.
        module: the graph whose sites may be factored (joint tables made, constant units gone).
        ledger: of its parameters.
        uncentred: names of sites that carry no offset although they may.
    """

    def __init__(
        self, program: Program, module: GraphModule, ledger: ParameterLedger, uncentred: Collection[str]
    ) -> None:
        self._program, self._module, self._ledger, self._uncentred = program, module, ledger, frozenset(uncentred)

    @cached_property
    def work(self) -> WorkLedger:
        """What is done for one row."""
        return work_ledger(self._module, self._uncentred)

    def dense(self, kind: CostKind) -> float:
        """What the original costs: parameters, bytes of all its state, or multiply-adds for one row."""
        match kind:
            case CostKind.PARAMETERS:
                return self._program.parameter_count()
            case CostKind.BYTES:
                return self._program.state_bytes()
            case CostKind.FLOPS:
                return sum(multiply_adds(self._program.graph_module).values())

    def estimate(self, kind: CostKind) -> Cost:
        """The cost as a function of the ranks: parameters as the ledger has them, the others estimated."""
        match kind:
            case CostKind.PARAMETERS:
                return self._ledger.total
            case CostKind.BYTES:
                size, other = self._bytes
                return lambda ranks: self._ledger.total(ranks) * size + other
            case CostKind.FLOPS:
                return self.work.multiply_adds

    def exact(self, kind: CostKind, ranks: Ranks) -> float:
        """The cost of the program that these ranks make."""
        module = blank_rewrite(self._module, ranks, self._uncentred)
        match kind:
            case CostKind.PARAMETERS:
                return sum(parameter.numel() for parameter in module.parameters())
            case CostKind.BYTES:
                tensors = [*module.parameters(), *module.buffers()]
                return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            case CostKind.FLOPS:
                return sum(multiply_adds(module).values())

    @cached_property
    def _bytes(self) -> tuple[float, int]:
        """Bytes of a parameter on average, and of everything else."""
        parameters = list(self._module.parameters())
        size = sum(each.numel() * each.element_size() for each in parameters)
        other = sum(each.numel() * each.element_size() for each in self._module.buffers())
        return size / max(1, sum(each.numel() for each in parameters)), other
