"""How a recovery trains: checked when it is made, and kept in the report and in checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from afm_fx.errors import RecoveryError


class Trainable(StrEnum):
    """Which parameters a recovery trains, where they are not named."""

    FACTORS = "factors"
    ALL = "all"


@dataclass(frozen=True)
class RecoverySettings:
    """The schedule of a recovery.

    Attributes:
        epochs: passes over the training batches.
        learning_rate: of Adam, at the first step; it falls to zero along half a cosine.
        label_weight: share of the loss that the labels make, 0 to 1; None without labels.
        trainable: "factors", "all", or the names of the parameters.
        held_out_share: share of the batches that are held out; None where held-out batches are given.
        patience: epochs without a smaller held-out error before training stops; None for never.
        activation: "relu" between the two factors of a Linear, or None.
        seed: of the held-out batches, and of the order of the batches.
    """

    epochs: int
    learning_rate: float
    label_weight: float | None
    trainable: str | tuple[str, ...]
    held_out_share: float | None
    patience: int | None
    activation: str | None
    seed: int

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            RecoveryError: naming the value and what it may be.
        """
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
        if self.patience is not None and self.patience < 1:
            raise RecoveryError(f"patience must be at least 1 epoch, or None for no early stop; got {self.patience}")
        if self.activation not in (None, "relu"):
            raise RecoveryError(f"activation is 'relu' or None, got {self.activation!r}")
        if isinstance(self.trainable, str) and self.trainable not in list(Trainable):
            raise RecoveryError(f"trainable is 'factors', 'all' or a list of parameter names, got {self.trainable!r}")
