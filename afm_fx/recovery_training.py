"""The training loop of a recovery, in one process or in many that take every step together.

Every process works on its rows of every batch, and its gradient counts by its share of them: the sum over all processes
is the gradient of the whole batch, so all take the step that one process would. ``DistributedDataParallel`` would give
every process the same say, whatever its rows, and would leave the others waiting where one fails.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afm_fx.capture import capture
from afm_fx.errors import FileFormatError, RecoveryError
from afm_fx.output_directory import staged_file
from afm_fx.process_groups import Group, add_up, agreed, attempt, rank_and_size
from afm_fx.program import Program
from afm_fx.progress import track
from afm_fx.recovery_data import RecoveryBatch, RecoveryData
from afm_fx.recovery_loss import LogitsOfBatch, TeacherLogits, error_sums, errors_of
from afm_fx.recovery_parameters import choose_parameters, with_activations, with_own_copies, zeros_to_keep
from afm_fx.recovery_report import RecoveryEpoch, RecoverySettings


@dataclass
class RecoveryState:
    """A recovery between two epochs.

    Randomness needs no state: the order of an epoch's batches follows from the seed and the epoch's number.

    Attributes:
        values: trained parameters by name, after the last epoch.
        best: number of the epoch with the smallest held-out error.
    """

    epochs: list[RecoveryEpoch]
    values: dict[str, Tensor]
    best: int
    best_values: dict[str, Tensor]
    optimizer: dict[str, Any]


class RecoveryRun:
    """One recovery, from the first epoch or from a checkpoint.

    Attributes:
        student: the program that is trained, in place.
        parameters: of the student, by name: those that are trained.
        activated: sites with an activation between their factors in the student.
    """

    def __init__(
        self,
        settings: RecoverySettings,
        data: RecoveryData,
        program: Program,
        teacher: Program | nn.Module,
        group: Group | None,
    ) -> None:
        self.settings, self.data, self._given, self._group = settings, data, program, group
        self._rank, world = rank_and_size(group)
        first = data.held_out[0]
        original = teacher if isinstance(teacher, Program) else capture(teacher, first.inputs)
        self._teacher = TeacherLogits(original, first, keep=data.keeps_batches)
        changed, self.activated = (program, ()) if settings.activation is None else with_activations(program)
        chosen = choose_parameters(program, original, settings.trainable)
        self.student, self.parameters = with_own_copies(changed, chosen)
        self._masks = zeros_to_keep(self.student, self.parameters)
        self._optimizer = torch.optim.Adam(self.parameters.values(), lr=settings.learning_rate)
        self._measured = [(batch, self._teacher(batch)) for batch in data.held_out[self._rank :: world]]
        self._logits = self._teacher.same_of(self.student)

    def identity(self) -> dict[str, Any]:
        """What two runs must share to train together, or for one to go on where the other was interrupted."""
        digest = hashlib.sha256()
        for name, tensor in self.parameters.items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return {
            **asdict(self.settings),
            "parameters": digest.hexdigest(),
            "training batches": self.data.steps,
            "held-out rows": sum(batch.rows for batch in self.data.held_out),
        }

    def train(self, checkpoint: str | os.PathLike[str] | None) -> RecoveryState:
        """Trains to the end, and leaves the parameters as they were after the best epoch.

        Args:
            checkpoint: file of the state, written by the first process after every epoch.
        """
        identity = self.identity()
        state: RecoveryState | None = self._by_first(lambda: _load(checkpoint, identity))
        if state is None:  # epoch 0 is what was given, without the activations
            epoch = self._measure(0, None, self._teacher.same_of(self._given), time.perf_counter())
            state = RecoveryState([epoch], self._values(), 0, self._values(), self._optimizer.state_dict())
        self._set_values(state.values)
        self._optimizer.load_state_dict(state.optimizer)
        for number in range(len(state.epochs), self.settings.epochs + 1):
            start = time.perf_counter()
            state.epochs.append(self._measure(number, self._epoch(number), self._logits, start))
            state.values, state.optimizer = self._values(), self._optimizer.state_dict()
            if state.epochs[number].decisive < state.epochs[state.best].decisive:
                state.best, state.best_values = number, state.values
            self._by_first(lambda: _save(checkpoint, state, identity))
        self._set_values(state.best_values)
        return state

    def _epoch(self, number: int) -> float:
        """Trains one epoch; its mean loss."""
        total = rows = 0.0
        batches = self.data.training(number)
        steps = range((number - 1) * self.data.steps, number * self.data.steps)
        for step in track(steps, f"recovering, epoch {number} of {self.settings.epochs}"):
            # Half a cosine, from the full rate at the first step of all to zero after the last.
            share = step / (self.settings.epochs * self.data.steps)
            self._optimizer.param_groups[0]["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * share)) / 2
            loss, size = self._sum(partial(self._gradients, batches, f"epoch {number}", step + 1), 2)
            if self._group is not None:
                for parameter in self.parameters.values():
                    if parameter.grad is not None:
                        parameter.grad.copy_(add_up(parameter.grad, self._group))
            self._optimizer.step()
            total, rows = total + loss * size, rows + size
        self._sum(lambda: tuple(batches), 0)  # goes past the last batch, where data that changed say so
        return total / rows

    def _gradients(self, batches: Iterator[RecoveryBatch], epoch: str, step: int) -> tuple[float, float]:
        """This process's part of the next batch's loss, with the gradients of that, and its rows."""
        batch = next(batches)
        target = self._teacher(batch)  # first: it explains ids outside their tables
        squares, entropy = errors_of(self._logits(batch), target, batch.labels, batch.name)
        weight = self.settings.label_weight or 0.0
        loss = ((1 - weight) * squares + weight * entropy) * batch.share
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RecoveryError(
                f"the loss is {value} in {epoch}, {batch.name} (step {step}): take a smaller learning_rate than "
                f"{self.settings.learning_rate:g}, or look for numbers in that batch that are far from the others"
            )
        self._optimizer.zero_grad()
        torch.autograd.backward(loss, inputs=list(self.parameters.values()))
        for name, mask in self._masks.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient.mul_(mask)
        return value, batch.rows

    def _measure(self, number: int, loss: float | None, logits: LogitsOfBatch, start: float) -> RecoveryEpoch:
        squares, entropy, count = self._sum(lambda: error_sums(logits, self._measured), 3)
        log_loss = None if self.settings.label_weight is None else entropy / count
        return RecoveryEpoch(number, loss, math.sqrt(squares / count), log_loss, time.perf_counter() - start)

    def _sum(self, compute: Callable[[], Sequence[Any]], count: int) -> list[float]:
        """The sums over all processes of some numbers. Where computing them fails in one, all raise."""
        numbers, failure = attempt(compute)
        part = torch.tensor([0.0, *numbers] if numbers is not None else [1.0, *[0.0] * count], dtype=torch.float64)
        total = part if self._group is None else add_up(part, self._group)
        if total[0] > 0:
            agreed(self._group, failure)
        sums: list[float] = total[1:].tolist()
        return sums

    def _by_first(self, compute: Callable[[], Any]) -> Any:
        """What the first process computes; all raise where that fails."""
        told, failure = attempt(compute) if self._rank == 0 else (None, None)
        return agreed(self._group, failure, told)[0]

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def _set_values(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])


def _save(path: str | os.PathLike[str] | None, state: RecoveryState, identity: dict[str, Any]) -> None:
    """Writes a state; the one before is replaced whole."""
    if path is None:
        return
    document = {**vars(state), "epochs": [asdict(epoch) for epoch in state.epochs], "identity": identity}
    with staged_file(Path(path), force=True) as staged:
        torch.save(document, staged)


def _load(path: str | os.PathLike[str] | None, identity: dict[str, Any]) -> RecoveryState | None:
    """Reads a state, None where there is no such file yet."""
    if path is None or not Path(path).exists():
        return None
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        theirs = document.pop("identity")
        epochs = [RecoveryEpoch(**epoch) for epoch in document.pop("epochs")]
        state = RecoveryState(epochs=epochs, **document)
        differing = sorted(name for name, value in identity.items() if theirs.get(name) != value)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"'{path}' is damaged, or no checkpoint of a recovery: {error}") from error
    if differing:
        raise RecoveryError(
            f"checkpoint '{path}' is of another run, which differs in {', '.join(differing)}; name another checkpoint, "
            "or remove this one to start over"
        )
    return state
