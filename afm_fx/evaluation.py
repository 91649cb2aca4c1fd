"""Rows with labels, to compare programs on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from afm_fx.batches import checked_batches
from afm_fx.errors import CalibrationError, PolicyError
from afm_fx.inputs import Inputs
from afm_fx.labels import checked_labels, split_pair
from afm_fx.logits import columns_of, expose_logits
from afm_fx.program import Program

LabelledBatch = tuple[Inputs, Any]
"""What the model takes, and labels [rows] or [rows, columns], 0 or 1, as a tensor or an array."""

PROBABILITY_FLOOR = 1e-7


@dataclass(frozen=True)
class LabelledRows:
    """Rows with labels.

    Attributes:
        inputs: batches of what the model takes.
        labels: [rows, columns], one column per number that the model predicts for a row.
    """

    inputs: tuple[Inputs, ...]
    labels: NDArray[np.float64]

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.labels.shape[0])


def labelled_rows(program: Program, evaluation: Iterable[LabelledBatch]) -> LabelledRows:
    """Checks batches with labels.

    Args:
        program: that takes the inputs.
        evaluation: batches of (inputs, labels).

    Raises:
        PolicyError: there are none, a label is neither 0 nor 1, or a column of labels holds one class only.
        BatchError: the inputs do not fit, or a batch has no labels or another number of them than rows.
    """
    pairs = [split_pair(given, f"evaluation batch {number}") for number, given in enumerate(evaluation)]
    if not pairs:
        raise PolicyError("the evaluation has no batches (an iterator that was used up?)")
    inputs = tuple(batch for batch, _ in pairs)
    checked = zip(checked_batches(program, inputs), pairs, strict=True)
    parts = [checked_labels(given, batch.rows, f"evaluation {batch.name}") for batch, (_, given) in checked]
    labels: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    outside = ~np.isin(labels, (0.0, 1.0))
    if outside.any():
        row = int(np.argwhere(outside)[0][0])
        raise PolicyError(f"labels are 0 or 1, row {row} of the evaluation has {labels[row].tolist()}")
    for column in range(labels.shape[1]):
        if labels[:, column].min() == labels[:, column].max():
            raise PolicyError(
                f"all {len(labels):,} labels of the evaluation are {labels[0, column]:.0f}: a comparison needs clicks "
                "and non-clicks"
            )
    return LabelledRows(inputs, labels)


def predicted_logits(program: Program, rows: LabelledRows) -> NDArray[np.float64]:
    """The program's logits [rows, columns].

    Outputs without a sigmoid are logits already, unless all of them lie in [0, 1]: then they are probabilities.

    Raises:
        PolicyError: the program predicts another number of columns than there are labels.
        CalibrationError: a logit is not finite.
    """
    exposed, _ = expose_logits(program)
    with torch.no_grad():
        outputs = [columns_of(exposed.run(batch)).double().cpu().numpy() for batch in rows.inputs]
    logits: NDArray[np.float64] = np.concatenate(outputs)
    if logits.shape != rows.labels.shape:
        raise PolicyError(
            f"the model predicts {logits.shape[1]} numbers a row, the evaluation has {rows.labels.shape[1]} labels"
        )
    if not np.isfinite(logits).all():
        raise CalibrationError(f"the logit of row {int(np.argwhere(~np.isfinite(logits))[0][0])} is not finite")
    if logits.min() >= 0 and logits.max() <= 1:
        kept = np.clip(logits, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        logits = np.log(kept) - np.log1p(-kept)
    return logits
