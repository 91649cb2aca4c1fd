"""Steps that processes take together: they add up gradients and errors, and fail together.

Every process works on its own rows of every batch, and its gradient counts by its share of them: the sum over all
processes is the gradient of the whole batch, so all take the step that one process would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afm_fx.process_groups import Group, add_up, agreed, rank_and_size


class SharedSteps:
    """The sums of a process group; without one, everything stays as it is.

    Every method is one and the same collective operation in all processes, in one that fails too: the others learn of
    it there, and nobody waits for a process that has given up.

    Args:
        group: the processes, None for this one alone.
        parameters: that are trained.
    """

    def __init__(self, group: Group | None, parameters: Sequence[nn.Parameter]) -> None:
        self._group, self._parameters = group, list(parameters)
        self.rank, self.world = rank_and_size(group)
        wide = any(each.dtype == torch.float64 for each in self._parameters)
        self._dtype = torch.float64 if wide else torch.float32

    def step(self, loss_and_gradients: Callable[[], float]) -> float:
        """Adds up the parameters' gradients, in place, and the loss.

        Args:
            loss_and_gradients: computes this process's part of both.

        Raises:
            Exception: what the function raised.
            OtherProcessError: another process failed or died.
        """
        loss, failure = _tried(loss_and_gradients)
        if self._group is None:
            return float(_given(loss, failure))
        found = None
        if failure is None:
            found = torch.cat([self._vector([loss]), *(self._gradient(each) for each in self._parameters)])
        total = self._sum(found, 1 + sum(each.numel() for each in self._parameters), failure)
        at = 1
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(total[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
        return float(total[0])

    def numbers(self, compute: Callable[[], Sequence[float]], count: int) -> list[float]:
        """The sums of some numbers, in float64.

        Raises:
            Exception: what the function raised.
            OtherProcessError: another process failed or died.
        """
        found, failure = _tried(compute)
        if self._group is None:
            return list(_given(found, failure))
        own = None if failure is not None else torch.tensor(list(found), dtype=torch.float64)
        total: list[float] = self._sum(own, count, failure, torch.float64).tolist()
        return total

    def told_by_first(self, compute: Callable[[], Any]) -> Any:
        """What the first process computes; the others do not.

        Raises:
            Exception: what the function raised.
            OtherProcessError: another process failed or died.
        """
        found, failure = _tried(compute) if self.rank == 0 else (None, None)
        return agreed(self._group, failure, found)[0]

    def _sum(
        self, own: Tensor | None, size: int, failure: Exception | None, dtype: torch.dtype | None = None
    ) -> Tensor:
        assert self._group is not None  # noqa: S101 - the callers look
        sent = torch.zeros(size + 1, dtype=dtype or self._dtype)
        if own is None:
            sent[0] = 1
        else:
            sent[1:] = own
        total = add_up(sent, self._group)
        if total[0] > 0:
            agreed(self._group, failure)
        return total[1:]

    def _gradient(self, parameter: nn.Parameter) -> Tensor:
        if parameter.grad is None:
            return torch.zeros(parameter.numel(), dtype=self._dtype)
        return parameter.grad.detach().reshape(-1).to(device="cpu", dtype=self._dtype)

    def _vector(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=self._dtype)


def _tried(compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the other processes wait to be told
        return None, error


def _given(found: Any, failure: Exception | None) -> Any:
    if failure is not None:
        raise failure
    return found
