"""Recovery: trains a low-rank program until it says what the original says again.

The teacher is the original, so no labels are needed; with them, the program also learns from the labels. Whatever
happens, the state with the smallest error on held-out rows is returned, and the program as it was given is one of the
states.

With the logits ``z`` of the program, ``t`` of the teacher and labels ``y``, all [rows, columns], a batch costs

    (1 - w) mean (z - t)^2  +  w mean (softplus(z) - y z),

the squared logit error and the binary cross-entropy, where ``w`` is the label weight (0 without labels).

Processes that train together take every step together: each works on its rows of every batch, and its gradient counts
by its share of them, so that the sum over all processes is the gradient of the whole batch.
``DistributedDataParallel`` would give every process the same say, whatever its rows, and would leave the others waiting
where one fails.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from afm_fx.errors import BatchError, FileFormatError, RecoveryError
from afm_fx.io import Group, add_up, agreed, attempt, check_alike, check_group, rank_and_size, staged_file, track
from afm_fx.program import Change, Program, capture, require_program
from afm_fx.recovery.recovery_data import Batches, LogitsOfBatch, RecoveryBatch, RecoveryData, TeacherLogits
from afm_fx.recovery.recovery_parameters import trained_copy
from afm_fx.recovery.recovery_report import RecoveryEpoch, RecoveryReport, RecoverySettings, Trainable


def recover(
    program: Program,
    teacher: Program | nn.Module,
    batches: Batches,
    *,
    labels: bool = False,
    epochs: int = 3,
    learning_rate: float = 3e-3,
    label_weight: float = 0.9,
    trainable: Trainable = "factors",
    held_out: float | Batches = 0.1,
    activation: str | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    group: Group | None = None,
) -> Change[RecoveryReport]:
    """Trains a low-rank program on the original's logits, and on labels where there are any.

    The same call tunes the original itself, as a control of what labels alone bring: give it as program and teacher,
    with ``labels=True`` and ``trainable="all"``.

    Args:
        program: the low-rank program, not packed yet: a packed one has parameters that follow from others, and rows
            of zeros that no operator guards. It is left as it is.
        teacher: the original, a program or a module.
        batches: what the original takes, batch by batch, gone through once per epoch: a list (shuffled here batch by
            batch), a ``DataLoader`` that does not shuffle, or a function that returns a new iterator each time.
        labels: batches are pairs ``(inputs, labels)``; labels are ``[rows]``, or ``[rows, tasks]`` in the order of the
            model's outputs, numbers from 0 to 1.
        epochs: passes over the training batches.
        learning_rate: of Adam, at the first step; it falls to zero along half a cosine. Where the program is nearly
            exact already (a logit error of 0.01, say), the default leaves it as it is, and a tenth of it may help.
        label_weight: share of the loss that the labels make: 1 learns from labels only.
        trainable: "factors" (what the rewrite made or changed) or "all".
        held_out: share of the batches that are measured on and not trained on (at least one batch), or batches of their
            own. With labels, rows that the teacher was not trained on tell more.
        activation: "relu" puts one between the two factors of every Linear, as the authors' variant has it. That
            changes the model, and by much at small ranks; where training does not make it better than the program
            given, that is returned.
        seed: of the held-out batches and of the order. The same seed gives the same result.
        checkpoint: file to save after every epoch and, where it exists, to go on from. Over processes the
            first one reads and writes it.
        group: processes that train together, for example ``torch.distributed.group.WORLD``. All make the same call
            with the same batches; each works on its part of the rows of every batch, gradients and held-out errors are
            added up, and all return the same. That is what one process would do, but for rounding.

    Returns:
        The best state on the held-out rows, by LogLoss with labels and by logit error without; the program given where
        that is the best. Parameters that were not trained are shared with it.

    Raises:
        RecoveryError: an unusable setting, batches that cannot be gone through again, nothing to train, a checkpoint of
            another run, or a loss that became NaN.
        BatchError: a batch does not fit the model, or labels of a wrong shape or value.
        FileFormatError: the checkpoint is damaged.
        OtherProcessError: another process of the group failed (which, and why) or died.
    """
    require_program(program, "afm_fx.recover")
    check_group(group)

    def prepare() -> _Run:
        share = float(held_out) if isinstance(held_out, int | float) else None
        weight = label_weight if labels else None
        settings = RecoverySettings(epochs, learning_rate, weight, trainable, share, activation, seed)
        data = RecoveryData(program, batches, labels=labels, held_out=held_out, seed=seed, group=group)
        return _Run(settings, data, program, teacher, group)

    run, failure = attempt(prepare)
    check_alike(agreed(group, failure, run and run.identity()), "recovers")
    assert run is not None  # noqa: S101 - else there was a failure, and that was raised
    run.train(checkpoint)
    report = RecoveryReport(
        epochs=tuple(run.epochs),
        best=run.best,
        trained=tuple(run.parameters),
        parameters_trained=sum(parameter.numel() for parameter in run.parameters.values()),
        held_out_rows=sum(batch.rows for batch in run.data.held_out),
        settings=run.settings,
    )
    recipe = program.recipe.then("recover", epochs=run.best, labels=labels, activation=activation, seed=seed)
    return Change(program if run.best == 0 else replace(run.student, recipe=recipe), report)


class _Run:
    """One recovery, from the first epoch or from a checkpoint.

    Its state between two epochs is what ``_save`` writes. Randomness needs none: the order of an epoch's batches
    follows from the seed and the epoch's number.

    Attributes:
        student: the program that is trained, in place.
        parameters: of the student, by name: those that are trained.
        best: number of the epoch with the smallest held-out error.
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
        self.student, self.parameters = trained_copy(program, original, settings)
        self._optimizer = torch.optim.Adam(self.parameters.values(), lr=settings.learning_rate)
        self._measured = [(batch, self._teacher(batch)) for batch in data.held_out[self._rank :: world]]
        self._logits = self._teacher.same_of(self.student)
        self.epochs: list[RecoveryEpoch] = []
        self.best, self.best_values = 0, self._values()

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

    def train(self, checkpoint: str | os.PathLike[str] | None) -> None:
        """Trains to the end, and leaves the parameters as they were after the best epoch.

        Args:
            checkpoint: file of the state, written by the first process after every epoch.
        """
        identity = self.identity()
        saved = self._by_first(lambda: _load(checkpoint, identity))
        if saved is None:  # epoch 0 is what was given, without the activations
            self.epochs = [self._measure(0, None, self._teacher.same_of(self._given), time.perf_counter())]
        else:
            self.epochs = [RecoveryEpoch(**epoch) for epoch in saved["epochs"]]
            self.best, self.best_values = saved["best"], saved["best_values"]
            self._set_values(saved["values"])
            self._optimizer.load_state_dict(saved["optimizer"])
        for number in range(len(self.epochs), self.settings.epochs + 1):
            start = time.perf_counter()
            self.epochs.append(self._measure(number, self._epoch(number), self._logits, start))
            if self.epochs[number].decisive < self.epochs[self.best].decisive:
                self.best, self.best_values = number, self._values()
            if checkpoint is not None:
                self._by_first(partial(self._save, Path(checkpoint), identity))
        self._set_values(self.best_values)

    def _save(self, path: Path, identity: dict[str, Any]) -> None:
        document = {
            "identity": identity,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": self.best,
            "best_values": self.best_values,
            "values": self._values(),
            "optimizer": self._optimizer.state_dict(),
        }
        with staged_file(path, force=True) as staged:
            torch.save(document, staged)

    def _epoch(self, number: int) -> float:
        """Trains one epoch; its mean loss."""
        total = rows = 0.0
        batches = self.data.training(number)
        steps = range((number - 1) * self.data.steps, number * self.data.steps)
        for step in track(steps, f"recovering, epoch {number} of {self.settings.epochs}"):
            # Half a cosine, from the full rate at the first step of all to zero after the last.
            share = step / (self.settings.epochs * self.data.steps)
            self._optimizer.param_groups[0]["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * share)) / 2
            loss, size = self._sum(partial(self._gradients, batches, f"epoch {number}"))
            for parameter in self.parameters.values():
                if parameter.grad is not None and self._group is not None:
                    parameter.grad.copy_(add_up(parameter.grad, self._group))
            self._optimizer.step()
            total, rows = total + loss * size, rows + size
        self._sum(lambda: tuple(batches))  # goes past the last batch, where data that changed say so
        return total / rows

    def _gradients(self, batches: Iterator[RecoveryBatch], epoch: str) -> tuple[float, float]:
        """This process's part of the next batch's loss, with the gradients of that, and its rows."""
        batch = next(batches)
        target = self._teacher(batch)  # first: it explains ids outside their tables
        squares, entropy = _errors(self._logits(batch), target, batch)
        weight = self.settings.label_weight or 0.0
        loss = ((1 - weight) * squares + weight * entropy) * batch.share
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RecoveryError(f"the loss is {value} in {epoch}, {batch.name}: take a smaller learning_rate")
        self._optimizer.zero_grad()
        torch.autograd.backward(loss, inputs=list(self.parameters.values()))
        return value, batch.rows

    def _measure(self, number: int, loss: float | None, logits: LogitsOfBatch, start: float) -> RecoveryEpoch:
        squares, entropy, count = self._sum(partial(self._held_out_sums, logits))
        log_loss = None if self.settings.label_weight is None else entropy / count
        return RecoveryEpoch(number, loss, math.sqrt(squares / count), log_loss, time.perf_counter() - start)

    @torch.no_grad()
    def _held_out_sums(self, logits: LogitsOfBatch) -> tuple[float, float, float]:
        """This process's squared logit errors and cross-entropies on held-out rows, and their number."""
        squares = entropy = count = 0.0
        for batch, target in self._measured:
            means = _errors(logits(batch).double(), target, batch)
            squares += float(means[0]) * target.numel()
            entropy += float(means[1]) * target.numel()
            count += target.numel()
        return squares, entropy, count

    def _sum(self, compute: Callable[[], Sequence[Any]]) -> list[float]:
        """The sums over all processes of some numbers. Where computing them fails in one, all raise."""
        numbers, failure = attempt(compute)
        return [sum(column) for column in zip(*agreed(self._group, failure, numbers), strict=True)]

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


def _load(path: str | os.PathLike[str] | None, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Reads a state, None where there is no such file yet."""
    if path is None or not Path(path).exists():
        return None
    try:
        document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        differing = sorted(name for name, value in identity.items() if document["identity"].get(name) != value)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"'{path}' is damaged, or no checkpoint of a recovery: {error}") from error
    if differing:
        raise RecoveryError(
            f"checkpoint '{path}' is of another run, which differs in {', '.join(differing)}; remove it to start over"
        )
    return document


def _errors(logits: Tensor, target: Tensor, batch: RecoveryBatch) -> tuple[Tensor, Tensor]:
    """The two means of a batch: squared distance to the teacher's logits, and cross-entropy, 0 without labels."""
    squares = (logits - target).square().mean()
    if batch.labels is None:
        return squares, torch.zeros_like(squares)
    if (tasks := batch.labels.shape[1]) != target.shape[1]:
        raise BatchError(f"{batch.name}: labels of {tasks} tasks, the model predicts {target.shape[1]} a row")
    return squares, binary_cross_entropy_with_logits(logits, batch.labels.to(logits))
