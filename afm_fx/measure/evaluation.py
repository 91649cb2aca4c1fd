"""Rows with labels, to compare programs on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from afm_fx.data import checked_batches, checked_labels, split_pair
from afm_fx.errors import CalibrationError, PolicyError
from afm_fx.program import Inputs, Program, as_logits, columns_of, expose_logits, probability_columns

LabelledBatch = tuple[Inputs, Any]
"""What the model takes, and labels [rows] or [rows, columns], 0 or 1, as a tensor or an array."""


@dataclass(frozen=True)
class LabelledRows:
    """Rows with labels.

    Attributes:
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

    An output without a sigmoid is a logit already, unless all of its numbers lie in [0, 1]: then it is a probability.

    Raises:
        PolicyError: the program predicts another number of columns than there are labels.
        CalibrationError: a logit is not finite.
    """
    exposed, _ = expose_logits(program)
    with torch.no_grad():
        logits = torch.cat([columns_of(exposed.run(batch)) for batch in rows.inputs]).double()
    if tuple(logits.shape) != rows.labels.shape:
        raise PolicyError(
            f"the model predicts {logits.shape[1]} numbers a row, the evaluation has {rows.labels.shape[1]} labels"
        )
    if not logits.isfinite().all():
        raise CalibrationError(f"the logit of row {int((~logits.isfinite()).nonzero()[0, 0])} is not finite")
    bounded = ((logits >= 0) & (logits <= 1)).all(dim=0)
    if bounded.any():
        logits = as_logits(logits, bounded & probability_columns(program, exposed, rows.inputs[0]))
    return logits.cpu().numpy()
