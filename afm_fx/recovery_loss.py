"""What a recovery makes small: how far logits are from the teacher's, and from the labels.

With the logits ``z`` of the program, ``t`` of the teacher and labels ``y``, all [rows, columns], a batch costs

    (1 - w) mean (z - t)^2  +  w mean (softplus(z) - y z),

the squared logit error and the binary cross-entropy, where ``w`` is the label weight (0 without labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from afm_fx.errors import BatchError, RecoveryError
from afm_fx.logits import as_logits, columns_of, expose_logits, probability_columns
from afm_fx.program import Program
from afm_fx.recovery_data import RecoveryBatch

LogitsOfBatch = Callable[[RecoveryBatch], Tensor]


class TeacherLogits:
    """The teacher's logits; its outputs that are probabilities without a sigmoid are turned into logits.

    Args:
        first: a batch to tell the outputs' kinds from.
        keep: whether logits may be kept by the batch's name, because a name always means the same batch.
    """

    def __init__(self, teacher: Program, first: RecoveryBatch, *, keep: bool) -> None:
        self._program, _ = expose_logits(teacher)
        self._kept: dict[str, Tensor] | None = {} if keep else None
        self._probabilities = probability_columns(teacher, self._program, first.inputs)

    def __call__(self, batch: RecoveryBatch) -> Tensor:
        """Logits [rows, columns] of a batch."""
        if self._kept is not None and batch.name in self._kept:
            return self._kept[batch.name]
        try:
            outputs = self._program.run(batch.inputs)
        except BatchError as error:
            place = str(error).removeprefix("batch 0, ")  # a program that is run once knows no number
            raise BatchError(f"{batch.name}: {place}") from error
        logits = self._as_logits(columns_of(outputs))
        if not bool(torch.isfinite(logits).all()):
            row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
            raise RecoveryError(
                f"{batch.name}, row {row}: the teacher's output is NaN or infinite; leave such rows out, or look for "
                "damage in the teacher's weights"
            )
        if self._kept is not None:
            self._kept[batch.name] = logits
        return logits

    def same_of(self, program: Program) -> LogitsOfBatch:
        """What gives a program's logits, with gradients."""
        exposed, _ = expose_logits(program)
        return lambda batch: self._as_logits(columns_of(exposed(*batch.args, **batch.kwargs)))

    def _as_logits(self, columns: Tensor) -> Tensor:
        if columns.shape[1:] != self._probabilities.shape or not bool(self._probabilities.any()):
            return columns
        return as_logits(columns, self._probabilities)


def errors_of(logits: Tensor, target: Tensor, labels: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """The two means of a batch: squared distance to the teacher's logits, and cross-entropy, 0 without labels."""
    if logits.shape != target.shape:
        raise RecoveryError(
            f"{name}: the program outputs {logits.shape[1]} numbers for each of {logits.shape[0]} rows, the "
            f"teacher {target.shape[1]} for each of {target.shape[0]}: they are different models"
        )
    squares = (logits - target).square().mean()
    if labels is None:
        return squares, torch.zeros_like(squares)
    if labels.shape != target.shape:
        raise BatchError(
            f"{name}: there are labels of {labels.shape[1]} tasks, the model predicts {target.shape[1]} a row"
        )
    return squares, binary_cross_entropy_with_logits(logits, labels.to(logits))


def error_sums(logits: LogitsOfBatch, batches: Iterable[tuple[RecoveryBatch, Tensor]]) -> tuple[float, float, float]:
    """Over held-out batches with the teacher's logits: squared logit errors, cross-entropies, and their number."""
    squares = entropy = 0.0
    count = 0
    with torch.no_grad():
        for batch, target in batches:
            means = errors_of(logits(batch).double(), target, batch.labels, batch.name)
            squares += float(means[0]) * target.numel()
            entropy += float(means[1]) * target.numel()
            count += target.numel()
            if not math.isfinite(squares + entropy):
                raise RecoveryError(f"{batch.name}, held out: the program's output is NaN or infinite")
    return squares, entropy, count
