"""How a recovery is to go, and how it went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from afm_fx.errors import RecoveryError
from afm_fx.io import render_table

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
        share = self.held_out_share
        allowed = {
            "epochs must be at least 1": self.epochs >= 1,
            "learning_rate must be positive": math.isfinite(self.learning_rate) and self.learning_rate > 0,
            "label_weight is a share of the loss between 0 and 1": 0 <= (self.label_weight or 0) <= 1,
            "held_out is a share of the batches between 0 and 1, or batches": share is None or 0 < share < 1,
            "activation is 'relu' or None": self.activation in (None, "relu"),
            "trainable is 'factors' or 'all'": self.trainable in ("factors", "all"),
        }
        for rule, holds in allowed.items():
            if not holds:
                raise RecoveryError(f"{rule}; got {self}")


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
        best: number of the epoch whose state was returned, 0 for the program as it was given.
        trained: names of the trained parameters.
        parameters_trained: scalars in them.
        held_out_rows: rows that were measured on and not trained on.
    """

    epochs: tuple[RecoveryEpoch, ...]
    best: int
    trained: tuple[str, ...]
    parameters_trained: int
    held_out_rows: int
    settings: RecoverySettings

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def table(self) -> str:
        """The epochs as text."""
        columns = ("epoch", "training loss", "logit error", "LogLoss", "seconds", "")
        rows = [
            (
                epoch.number,
                "" if epoch.loss is None else f"{epoch.loss:.5f}",
                f"{epoch.logit_rmse:.5f}",
                "" if epoch.log_loss is None else f"{epoch.log_loss:.5f}",
                f"{epoch.seconds:.1f}",
                "returned" if epoch.number == self.best else "",
            )
            for epoch in self.epochs
        ]
        activated = "; relu between the factors" if self.settings.activation and self.best else ""
        return (
            f"{render_table('recovery', columns, rows, text=('',))}\n{self.parameters_trained:,} parameters trained; "
            f"errors are those on {self.held_out_rows:,} held-out rows{activated}"
        )
