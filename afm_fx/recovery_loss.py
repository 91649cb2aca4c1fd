"""What a recovery makes small: how far logits are from the teacher's, and from the labels.

With the logits ``z`` of the program, ``t`` of the teacher and labels ``y``, all [rows, columns], a batch costs

    (1 - w) mean (z - t)^2  +  w mean (softplus(z) - y z),

the squared logit error and the binary cross-entropy, where ``w`` is the label weight (0 without labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afm_fx.errors import BatchError, RecoveryError
from afm_fx.logits import columns_of, expose_logits
from afm_fx.program import Program
from afm_fx.recovery_data import RecoveryBatch
from afm_fx.shared_steps import SharedSteps

NEAREST = 1e-6
"""How near to 0 and 1 a probability may come before it is turned into a logit."""

LogitsOfBatch = Callable[[RecoveryBatch], Tensor]


@dataclass(frozen=True)
class HeldOutError:
    """How good a program is on the held-out rows.

    Attributes:
        logit_rmse: root mean square distance to the teacher's logits.
        log_loss: mean binary cross-entropy on the labels in nats, None without labels.
    """

    logit_rmse: float
    log_loss: float | None


class TeacherLogits:
    """The teacher's logits, and which of its outputs are probabilities that no sigmoid ends in.

    A product of probabilities (a conversion after a click, say) is such an output. It is made a logit of its own, so
    that errors of all columns are of one kind.

    Args:
        teacher: the original.
        first: a batch to tell the outputs' kinds from.
        keep: whether logits may be kept per position, because a position always holds the same batch.

    Raises:
        BatchError: the batch does not fit it.
    """

    def __init__(self, teacher: Program, first: RecoveryBatch, *, keep: bool) -> None:
        self._program, _ = expose_logits(teacher)
        self._kept: dict[int, Tensor] | None = {} if keep else None
        outputs, exposed = columns_of(teacher.run(first.inputs)), columns_of(self._program.run(first.inputs))
        bounded = ((outputs >= 0) & (outputs <= 1)).all(dim=0)
        self.probabilities = bounded & (outputs == exposed).all(dim=0)

    def of(self, batch: RecoveryBatch) -> Tensor:
        """Logits [rows, columns] of a training batch.

        Raises:
            BatchError: the batch holds an id outside its table.
            RecoveryError: a logit is NaN or infinite.
        """
        known = None if self._kept is None else self._kept.get(batch.position)
        if known is not None:
            return known
        logits = self.fresh(batch)
        if self._kept is not None:
            self._kept[batch.position] = logits
        return logits

    def fresh(self, batch: RecoveryBatch) -> Tensor:
        """:meth:`of` any batch, not kept."""
        try:
            outputs = self._program.run(batch.inputs)
        except BatchError as error:
            place = str(error).removeprefix("batch 0, ")  # a program that is run once knows no number
            raise BatchError(f"{batch.name}: {place}") from error
        logits = as_logits(columns_of(outputs), self.probabilities)
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
            raise RecoveryError(
                f"{batch.name}, row {row}: the teacher's output is NaN or infinite; leave such rows out, or look for "
                "damage in the teacher's weights"
            )
        return logits


def as_logits(columns: Tensor, probabilities: Tensor) -> Tensor:
    """Output columns [rows, columns] with those that are probabilities made logits."""
    if columns.shape[1:] != probabilities.shape or not bool(probabilities.any()):
        return columns
    return torch.where(probabilities, torch.logit(columns, eps=NEAREST), columns)


def logits_of(program: Program, probabilities: Tensor) -> LogitsOfBatch:
    """The logits [rows, columns] of a batch, with gradients; ``program`` has its sigmoids taken off already."""
    return lambda batch: as_logits(columns_of(program(*batch.args, **batch.kwargs)), probabilities)


def loss_of(logits: Tensor, target: Tensor, labels: Tensor | None, label_weight: float) -> Tensor:
    """The loss of one batch, a scalar."""
    distance = (logits - target).square().mean()
    if labels is None or label_weight == 0:
        return distance
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
    return entropy if label_weight == 1 else (1 - label_weight) * distance + label_weight * entropy


def measure(
    logits: LogitsOfBatch, batches: Sequence[tuple[RecoveryBatch, Tensor]], shared: SharedSteps
) -> HeldOutError:
    """The error over held-out batches, each with the teacher's logits, summed in float64.

    Processes share the batches, and all get the error over all.

    Raises:
        RecoveryError: a logit is NaN or infinite.
        OtherProcessError: another process failed or died.
    """
    own = batches[shared.rank :: shared.world]
    squares, count, entropy, labelled = shared.numbers(lambda: _sums(logits, own), 4)
    return HeldOutError(math.sqrt(squares / count), entropy / count if labelled else None)


def _sums(logits: LogitsOfBatch, batches: Iterable[tuple[RecoveryBatch, Tensor]]) -> tuple[float, float, float, float]:
    """Squared logit errors, numbers, cross-entropies, and labelled batches."""
    squares = entropy = 0.0
    count = labelled = 0
    with torch.no_grad():
        for batch, target in batches:
            found = logits(batch).double()
            check_columns(found, target, batch)
            squares += float((found - target).square().sum())
            count += target.numel()
            if batch.labels is not None:
                labelled += 1
                entropy += float(
                    nn.functional.binary_cross_entropy_with_logits(found, batch.labels.to(found), reduction="sum")
                )
            if not math.isfinite(squares + entropy):
                raise RecoveryError(f"{batch.name}, held out: the program's output is NaN or infinite")
    return squares, count, entropy, labelled


def check_columns(logits: Tensor, target: Tensor, batch: RecoveryBatch) -> None:
    """Checks that program, teacher and labels speak of the same numbers.

    Raises:
        RecoveryError: they differ in their number of columns.
    """
    if logits.shape != target.shape:
        raise RecoveryError(
            f"{batch.name}: the program outputs {logits.shape[1]} numbers for each of {logits.shape[0]} rows, the "
            f"teacher {target.shape[1]} for each of {target.shape[0]}: they are different models"
        )
    if batch.labels is not None and batch.labels.shape[1] != target.shape[1]:
        raise RecoveryError(
            f"{batch.name}: there are labels of {batch.labels.shape[1]} tasks, the model predicts {target.shape[1]} "
            "numbers for a row"
        )
