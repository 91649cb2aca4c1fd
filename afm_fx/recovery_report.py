"""What a recovery did."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from afm_fx.program import Program
from afm_fx.recovery_settings import RecoverySettings
from afm_fx.tables import render_table


@dataclass(frozen=True)
class RecoveryEpoch:
    """The state after one epoch; epoch 0 is the program as it was given.

    Attributes:
        number: of the epoch.
        loss: mean training loss over the epoch's rows; None for epoch 0.
        logit_rmse: root mean square distance to the teacher's logits on the held-out rows.
        log_loss: on the held-out rows in nats, None without labels.
        seconds: of training and measuring.
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
        stopped: why training ended.
        trained: names of the trained parameters.
        parameters_trained: scalars in them.
        parameters: scalars of the whole program.
        training_batches: batches per epoch.
        held_out_rows: rows that were measured on and not trained on.
        activated: sites with an activation between their factors, in the program returned.
        settings: the schedule.
    """

    epochs: tuple[RecoveryEpoch, ...]
    best: int
    stopped: str
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
            f"an epoch; errors are those on {self.held_out_rows:,} held-out rows; {self.stopped}",
        ]
        if self.activated:
            lines.append(f"{self.settings.activation} between the factors of {', '.join(self.activated)}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything as a JSON document."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class Recovered:
    """A recovered program and how it came about."""

    program: Program
    report: RecoveryReport
