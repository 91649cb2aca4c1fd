"""How a recovery is to go, and how it went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from afm_fx.errors import RecoveryError
from afm_fx.tables import render_table

Trainable = Literal["factors", "all"]


@dataclass(frozen=True)
class RecoverySettings:
    """The settings of a recovery, as :func:`afm_fx.recover` explains them.

    ``label_weight`` is None without labels, ``held_out_share`` where held-out batches were given.
    """

    epochs: int
    learning_rate: float
    label_weight: float | None
    trainable: Trainable
    held_out_share: float | None
    activation: str | None
    seed: int

    def __post_init__(self) -> None:
        """Checks every value."""
        if self.epochs < 1:
            raise RecoveryError(f"epochs must be at least 1, got {self.epochs}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise RecoveryError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.label_weight is not None and not 0 <= self.label_weight <= 1:
            raise RecoveryError(
                f"label_weight is the labels' share of the loss, between 0 and 1; got {self.label_weight}"
            )
        if self.held_out_share is not None and not 0 < self.held_out_share < 1:
            raise RecoveryError(
                f"held_out is a share of the batches between 0 and 1, or batches; got {self.held_out_share}"
            )
        if self.activation not in (None, "relu"):
            raise RecoveryError(f"activation is 'relu' or None, got {self.activation!r}")
        if self.trainable not in ("factors", "all"):
            raise RecoveryError(f"trainable is 'factors' or 'all', got {self.trainable!r}")


@dataclass(frozen=True)
class RecoveryEpoch:
    """The state after one epoch; epoch 0 is the program as it was given.

    Attributes:
        loss: mean training loss over the epoch's rows; None for epoch 0.
        logit_rmse: root mean square distance to the teacher's logits on the held-out rows.
        log_loss: on the held-out rows in nats, None without labels.
    """

    number: int
    loss: float | None
    logit_rmse: float
    log_loss: float | None
    seconds: float

    @property
    def decisive(self) -> float:
        """The number by which epochs are compared: the LogLoss where there are labels."""
        return self.logit_rmse if self.log_loss is None else self.log_loss


@dataclass(frozen=True)
class RecoveryReport:
    """How a recovery went.

    Attributes:
        epochs: all of them, from epoch 0.
        best: number of the epoch whose state was returned, 0 for the program as it was given.
        trained: names of the trained parameters.
        parameters_trained: scalars in them.
        parameters: scalars of the whole program.
        training_batches: batches per epoch.
        held_out_rows: rows that were measured on and not trained on.
        activated: sites with an activation between their factors, in the program returned.
    """

    epochs: tuple[RecoveryEpoch, ...]
    best: int
    trained: tuple[str, ...]
    parameters_trained: int
    parameters: int
    training_batches: int
    held_out_rows: int
    activated: tuple[str, ...]
    settings: RecoverySettings

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def table(self) -> str:
        """The epochs as text."""
        labelled = self.epochs[0].log_loss is not None
        columns = ("epoch", "training loss", "logit error", *(("LogLoss",) if labelled else ()), "seconds", "")
        rows = [
            (
                epoch.number,
                "" if epoch.loss is None else f"{epoch.loss:.5f}",
                f"{epoch.logit_rmse:.5f}",
                *((f"{epoch.log_loss:.5f}",) if labelled else ()),
                f"{epoch.seconds:.1f}",
                "returned" if epoch.number == self.best else "",
            )
            for epoch in self.epochs
        ]
        lines = [
            render_table("recovery", columns, rows, text=("",)),
            f"{self.parameters_trained:,} of {self.parameters:,} parameters trained, {self.training_batches:,} batches "
            f"an epoch; errors are those on {self.held_out_rows:,} held-out rows",
        ]
        if self.activated:
            lines.append(f"{self.settings.activation} between the factors of {', '.join(self.activated)}")
        return "\n".join(lines)
