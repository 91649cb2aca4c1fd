"""A plain training loop: Adam, early stopping on the validation AUC."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from afm_fx.errors import FileFormatError, UserError
from afm_fx.io import progress_bar
from benchmarks.datasets import Rows
from benchmarks.quality.ranking_metrics import auc, log_loss


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        max_epochs: upper limit.
        patience: epochs without a better validation AUC before training stops.
        batch_size: rows a step.
        learning_rate: of Adam.
        seed: of the shuffling and of dropout.
    """

    max_epochs: int = 12
    patience: int = 2
    batch_size: int = 4096
    learning_rate: float = 3e-3
    seed: int = 2024

    def __post_init__(self) -> None:
        if min(self.max_epochs, self.patience, self.batch_size) < 1 or self.learning_rate <= 0:
            raise UserError(f"epochs, patience, batch size and learning rate must be positive: {self}")


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean training loss (regularization included), validation AUC and LogLoss, seconds."""

    number: int
    training_loss: float
    validation_auc: float
    validation_log_loss: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """A finished training: all epochs, and the number of the best one, whose weights the model now has."""

    epochs: tuple[Epoch, ...]
    best: int

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


def train(model: nn.Module, training: Rows, validation: Rows, config: TrainingConfig) -> Training:
    """Trains in place and leaves the model in eval mode with the weights of the best epoch."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    epochs: list[Epoch] = []
    best = 0
    best_state: dict[str, torch.Tensor] = {}
    steps = -(-len(training) // config.batch_size)
    with progress_bar() as bar:
        task = bar.add_task("Training", total=config.max_epochs * steps)
        for number in range(1, config.max_epochs + 1):
            start = time.perf_counter()
            loss = _train_epoch(
                model,
                training,
                batch_size=config.batch_size,
                optimizer=optimizer,
                generator=generator,
                advance=lambda: bar.advance(task),
            )
            scores = predict(model, validation)
            labels = validation.labels.numpy()
            epochs.append(
                Epoch(number, loss, auc(labels, scores), log_loss(labels, scores), time.perf_counter() - start)
            )
            bar.update(task, description=f"Training: epoch {number}, AUC {epochs[-1].validation_auc:.4f}")
            if best == 0 or epochs[-1].validation_auc > epochs[best - 1].validation_auc:
                best, best_state = number, copy.deepcopy(model.state_dict())
            if number - best >= config.patience:
                break
    model.load_state_dict(best_state)
    model.eval()
    return Training(tuple(epochs), best)


def _train_epoch(
    model: nn.Module,
    training: Rows,
    *,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    advance: Callable[[], None],
) -> float:
    model.train()
    order = torch.randperm(len(training), generator=generator)
    total = 0.0
    for rows in order.split(batch_size):
        optimizer.zero_grad()
        scores = model(training.inputs[rows]).squeeze(-1)
        loss = nn.functional.binary_cross_entropy(scores, training.labels[rows]) + regularization(model)
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(rows)
        advance()
    return total / len(training)


def regularization(model: nn.Module) -> torch.Tensor:
    """What the model itself adds to the loss: its penalties on weights, and auxiliary losses where it has any."""
    penalty = getattr(model, "get_regularization_loss", None)
    if penalty is None:
        return torch.zeros(())
    return (penalty() + getattr(model, "aux_loss", 0)).sum()


def predict(model: Callable[[torch.Tensor], torch.Tensor], rows: Rows, batch_size: int = 16384) -> NDArray[np.float64]:
    """Click probabilities of a model or program in eval mode, float64 [rows]."""
    if isinstance(model, nn.Module):
        model.eval()
    with torch.no_grad():
        parts = [model(inputs).reshape(-1) for inputs in rows.inputs.split(batch_size)]
    return torch.cat(parts).double().numpy()


def train_or_load(
    model: nn.Module,
    training: Rows,
    validation: Rows,
    config: TrainingConfig,
    *,
    folder: Path | None,
    identity: object,
) -> Training:
    """Trains, or loads the checkpoint that a training of the same identity left in ``folder``.

    Args:
        folder: where checkpoints are kept; None never keeps any.
        identity: what the weights depend on besides ``config``, as JSON-able values.

    Raises:
        FileFormatError: the checkpoint is damaged.
    """
    if folder is None:
        return train(model, training, validation, config)
    digest = hashlib.sha256(json.dumps([asdict(config), identity], sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{type(model).__name__}-{digest}.pt"
    if path.exists():
        return _load(model, path)
    result = train(model, training, validation, config)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state": model.state_dict(), "training": asdict(result)}, path)
    return result


def _load(model: nn.Module, path: Path) -> Training:
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        model.load_state_dict(saved["state"])
        epochs = tuple(Epoch(**epoch) for epoch in saved["training"]["epochs"])
        best = int(saved["training"]["best"])
    except Exception as error:
        raise FileFormatError(f"checkpoint '{path}' is damaged ({type(error).__name__}); delete it") from error
    model.eval()
    return Training(epochs, best)
