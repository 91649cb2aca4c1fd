"""The training loop of a recovery."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from afm_fx.errors import RecoveryError
from afm_fx.logits import expose_logits
from afm_fx.process_groups import Group
from afm_fx.program import Program
from afm_fx.progress import progress_bar
from afm_fx.recovery_checkpoint import RecoveryState, load_state, run_identity, save_state
from afm_fx.recovery_data import RecoveryBatch, RecoveryData
from afm_fx.recovery_loss import TeacherLogits, check_columns, logits_of, loss_of, measure
from afm_fx.recovery_parameters import zeros_to_keep
from afm_fx.recovery_report import RecoveryEpoch
from afm_fx.recovery_settings import RecoverySettings
from afm_fx.shared_steps import SharedSteps

ALL_DONE = "all epochs are done"


class RecoveryRun:
    """One recovery, from the first epoch or from a checkpoint to the last.

    Args:
        settings: the schedule.
        data: training and held-out batches.
        teacher: gives the logits to learn.
        student: the program to train, in place.
        parameters: of the student, by name: those to train.
        checkpoint: where the state is kept, None for nowhere.
        group: processes that train together, None for this one alone.
    """

    def __init__(
        self,
        settings: RecoverySettings,
        data: RecoveryData,
        teacher: TeacherLogits,
        student: Program,
        parameters: Mapping[str, nn.Parameter],
        *,
        checkpoint: str | os.PathLike[str] | None,
        group: Group | None = None,
    ) -> None:
        self.settings, self.data, self.teacher, self.student = settings, data, teacher, student
        self.parameters = dict(parameters)
        self.checkpoint = checkpoint
        self._trained = list({id(each): each for each in parameters.values()}.values())
        self._shared = SharedSteps(group, self._trained)
        self._masks = zeros_to_keep(student, parameters)
        self._optimizer = torch.optim.Adam(self._trained, lr=settings.learning_rate)
        self._measured = [(batch, teacher.fresh(batch)) for batch in data.held_out]
        self._logits = logits_of(expose_logits(student)[0], teacher.probabilities)

    def train(self, given: Program) -> tuple[RecoveryState, str]:
        """Trains to the end.

        Args:
            given: what epoch 0 is: the program before training and before an activation was put into it.

        Returns:
            The last state, and why training ended.

        Raises:
            RecoveryError: a loss or an output is NaN or infinite, or the checkpoint is of another run.
        """
        identity = self.identity()
        kept = self.checkpoint
        state = None if kept is None else self._shared.told_by_first(lambda: load_state(kept, identity))
        if state is None:
            state = self._start(given)
        else:
            self._take_up(state)
        with progress_bar() as bar:
            total = self.settings.epochs * self.data.steps
            task = bar.add_task("recovering", total=total, completed=state.epochs[-1].number * self.data.steps)
            while (why := self._finished(state)) is None:
                state = self._next(state, lambda: bar.advance(task))
                last = state.epochs[-1]
                bar.update(task, description=f"recovering: epoch {last.number}, held-out error {last.decisive:.5f}")
                if kept is not None:
                    self._shared.told_by_first(functools.partial(save_state, kept, state, identity))
        return state, why

    def identity(self) -> dict[str, Any]:
        """What runs must have in common, to go on with one another or to train together."""
        rows = sum(batch.rows for batch in self.data.held_out)
        return run_identity(self.settings, self.parameters, self.data.steps, rows)

    def _start(self, given: Program) -> RecoveryState:
        start = time.perf_counter()
        error = measure(logits_of(expose_logits(given)[0], self.teacher.probabilities), self._measured, self._shared)
        epoch = RecoveryEpoch(0, None, error.logit_rmse, error.log_loss, time.perf_counter() - start)
        return RecoveryState((epoch,), 0, self._values(), self._values(), {}, 0)

    def _finished(self, state: RecoveryState) -> str | None:
        """Why training ends here, None where it goes on."""
        last, patience = state.epochs[-1].number, self.settings.patience
        if last >= self.settings.epochs:
            return ALL_DONE
        if patience is not None and last - state.best >= patience:
            return f"stopped early, no smaller error for {last - state.best} epochs"
        return None

    def _next(self, state: RecoveryState, advance: Callable[[], None]) -> RecoveryState:
        """The state after one more epoch."""
        start = time.perf_counter()
        number = state.epochs[-1].number + 1
        loss, steps = self._epoch(number, state.steps, advance)
        error = measure(self._logits, self._measured, self._shared)
        epoch = RecoveryEpoch(number, loss, error.logit_rmse, error.log_loss, time.perf_counter() - start)
        better = epoch.decisive < state.epochs[state.best].decisive
        return RecoveryState(
            epochs=(*state.epochs, epoch),
            best=number if better else state.best,
            current=self._values(),
            best_values=self._values() if better else state.best_values,
            moments=self._moments(),
            steps=steps,
        )

    def _epoch(self, number: int, steps: int, advance: Callable[[], None]) -> tuple[float, int]:
        """Trains one epoch; its mean loss, and the steps so far."""
        total, rows = 0.0, 0
        batches, seen = self.data.training(number), _Seen()
        for _ in range(self.data.steps):
            self._set_learning_rate(steps)
            loss = self._shared.step(functools.partial(self._gradients, batches, seen, number, steps))
            self._optimizer.step()
            total, rows, steps = total + loss * seen.rows, rows + seen.rows, steps + 1
            advance()
        self._shared.numbers(functools.partial(_check_end, batches), 1)
        return total / rows, steps

    def _gradients(self, batches: Iterator[RecoveryBatch], seen: _Seen, epoch: int, steps: int) -> float:
        """The next batch's loss and, in the parameters, its gradients: by the part of its rows that are here."""
        batch = next(batches, None)
        if batch is None:
            raise RecoveryError(f"there are fewer batches in epoch {epoch} than before")
        seen.rows = batch.whole_rows
        loss = self._loss(batch)
        if not math.isfinite(loss):
            raise RecoveryError(
                f"the loss is {loss} in epoch {epoch}, {batch.name} (step {steps + 1}): take a smaller "
                f"learning_rate than {self.settings.learning_rate:g}, or look for numbers in that batch that are "
                "far from the others"
            )
        return loss

    def _loss(self, batch: RecoveryBatch) -> float:
        target = self.teacher.of(batch)  # first: it explains ids outside their tables
        logits = self._logits(batch)
        check_columns(logits, target, batch)
        loss = loss_of(logits, target, batch.labels, self.settings.label_weight or 0.0) * batch.weight
        self._optimizer.zero_grad()
        torch.autograd.backward(loss, inputs=self._trained)
        for name, mask in self._masks.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient.mul_(mask)
        return float(loss.detach())

    def _set_learning_rate(self, step: int) -> None:
        """Half a cosine from the full rate at step 0 to zero at the last."""
        share = step / (self.settings.epochs * self.data.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * share)) / 2

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def _moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        states: Mapping[Any, dict[str, Tensor]] = self._optimizer.state
        return {
            name: (states[each]["exp_avg"].clone(), states[each]["exp_avg_sq"].clone())
            for name, each in self.parameters.items()
        }

    def _take_up(self, state: RecoveryState) -> None:
        """Goes on from a checkpoint."""
        set_values(self.parameters, state.current)
        for name, (mean, square) in state.moments.items():
            self._optimizer.state[self.parameters[name]] = {
                "step": torch.tensor(float(state.steps)),
                "exp_avg": mean.to(self.parameters[name].device),
                "exp_avg_sq": square.to(self.parameters[name].device),
            }


class _Seen:
    """How many rows the batch of a step has, in all processes together."""

    rows = 0


def _check_end(batches: Iterator[RecoveryBatch]) -> tuple[float]:
    """Goes past the last batch: data that have more batches than before say so there."""
    for _ in batches:
        pass
    return (0.0,)


def set_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Gives parameters other numbers, in place."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
